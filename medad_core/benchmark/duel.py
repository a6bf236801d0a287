"""medad and what people would use instead, side by side on the same input: `medad benchmark WORK DATA --against PEER`.

One decision: a speed is reported of equal results only. Every peer runs once before anything is measured, and its
result is compared with medad's. Then both take turns, so that a busy machine slows both.
"""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Generic, TypeVar

import numpy as np
import torch

from medad_core.benchmark.machine import code_commit, cpu_name
from medad_core.benchmark.spread import Spread
from medad_core.environment import installed_version
from medad_core.errors import MedadError, UsageError
from medad_core.progress import ReportText

PAIRS = 5
ALL = "all"
Given = TypeVar("Given")
Result = Mapping[str, np.ndarray]
Act = Callable[[], Callable[[], Result]]


class UnequalError(MedadError):
    """The results of two contenders differ, so their speeds are not compared."""


@dataclass(frozen=True)
class Contender(Generic[Given]):
    """Somebody who does a work. `what` says what it is: the real library, or a loop that is re-stated here.

    `open(given)` prepares what is not measured, such as models, and returns the act that is measured. The act does the
    work once, and returns a function that gives the result as arrays by name; what that does is not measured either.
    `packages` are the distributions of PyPI that it runs from, beside those that medad needs itself.
    """

    name: str
    what: str
    open: Callable[[Given], Act]
    packages: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """Its packages that are not installed."""
        return tuple(package for package in self.packages if installed_version(package) is None)

    @property
    def versions(self) -> dict[str, str]:
        """Its packages with their versions."""
        return {package: installed_version(package) or "missing" for package in self.packages}


@dataclass(frozen=True)
class Contest(Generic[Given]):
    """A work and who does it.

    `tolerance` is the largest difference, by name of result, at which results are equal. A peer may have fewer results
    than medad, but one at least. `floors` do a part of the work that nobody can leave out, and are not compared.
    """

    work: str
    ours: Contender[Given]
    peers: tuple[Contender[Given], ...]
    tolerance: Mapping[str, float]
    floors: tuple[Contender[Given], ...] = ()

    def chosen(self, against: Sequence[str]) -> list[Contender[Given]]:
        """The peers of these names, with all floors; without names, or with "all", those that are installed.

        Raises UsageError for a name that is no peer, and for a peer that is not installed.
        """
        known = {peer.name: peer for peer in self.peers}
        unknown = [name for name in against if name not in known and name != ALL]
        if unknown:
            raise UsageError(f"--against {unknown[0]}: peers of {self.work} are {', '.join(known)}")
        named = [known[name] for name in against if name != ALL]
        absent = [hint for peer in named if (hint := how_to_install(peer))]
        if absent:
            raise UsageError(f"--against {absent[0]}")
        peers = named or [peer for peer in self.peers if not peer.missing]
        return [*peers, *(floor for floor in self.floors if not floor.missing)]


@dataclass(frozen=True)
class Pairing:
    """A peer, or a floor, in turn with medad. `ratio` is its median time over medad's, `ratios` are those of the pairs.

    `differences` are the largest by name of result; empty for a floor.
    """

    name: str
    what: str
    versions: dict[str, str]
    is_floor: bool
    ours_s: Spread
    theirs_s: Spread
    ratio: float
    ratios: Spread
    differences: dict[str, float]


@dataclass(frozen=True)
class Fact:
    """Another number of the same run."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True)
class DuelReport:
    """All that was measured of a work, where, when, and on which code. Times are in s."""

    work: str
    given: str
    ours: str
    commit: str
    date: str
    device: str
    threads: int
    pairings: tuple[Pairing, ...]
    missing: tuple[str, ...]
    tolerance: dict[str, float]
    facts: tuple[Fact, ...] = ()

    def with_facts(self, *facts: Fact) -> DuelReport:
        """The report with these facts after its own."""
        return replace(self, facts=(*self.facts, *facts))


def how_to_install(peer: Contender) -> str:
    """A peer that is not installed, and the way to install it; empty for one that is."""
    if not peer.missing:
        return ""
    packages = " ".join(peer.missing)
    return f"{peer.name} needs packages that are not installed; `python -m pip install {packages}` installs them"


def duel(
    contest: Contest[Given],
    given: Given,
    described: str,
    against: Sequence[str] = (),
    pairs: int = PAIRS,
    progress: ReportText = lambda _text: None,
    device: str = "",
) -> DuelReport:
    """Compare the results of medad and each peer on `given`, then measure them in turns, `pairs` times.

    `device` is the name of a GPU that does the work; without it the CPU's is reported. Raises UsageError as
    `Contest.chosen` does, and UnequalError for results that differ, before anything is measured.
    """
    chosen = contest.chosen(against)
    progress(f"{contest.work}: medad")
    ours = contest.ours.open(given)
    result = ours()()
    acts = []
    for rival in chosen:
        progress(f"{contest.work}: is the result of {rival.name} equal?")
        act = rival.open(given)
        theirs = act()
        is_floor = rival in contest.floors
        differences = {} if is_floor else require_equal(rival.name, result, theirs(), contest.tolerance)
        acts.append((rival, act, is_floor, differences))
        del theirs
    del result
    pairings = []
    for rival, act, is_floor, differences in acts:
        ours_s, theirs_s = _in_turn(ours, act, pairs, f"{contest.work}: medad and {rival.name}", progress)
        pairings.append(_pairing(rival, is_floor, ours_s, theirs_s, differences))
    return DuelReport(
        work=contest.work,
        given=described,
        ours=contest.ours.what,
        commit=code_commit(),
        date=datetime.now(UTC).date().isoformat(),
        device=device or cpu_name(),
        threads=torch.get_num_threads(),
        pairings=tuple(pairings),
        missing=tuple(hint for peer in (*contest.peers, *contest.floors) if (hint := how_to_install(peer))),
        tolerance=dict(contest.tolerance),
    )


def require_equal(name: str, ours: Result, theirs: Result, tolerance: Mapping[str, float]) -> dict[str, float]:
    """The largest difference of each result that both have. Raises UnequalError where one is above its tolerance."""
    shared = [key for key in ours if key in theirs]
    if not shared:
        raise UnequalError(f"{name} has none of the results {', '.join(ours)}; no speed is reported")
    differences = {key: _largest_difference(name, key, ours[key], theirs[key]) for key in shared}
    for key, difference in differences.items():
        if not difference <= tolerance[key]:
            raise UnequalError(
                f"{name} has other results: {key} differ by up to {difference:.4g}, "
                f"and {tolerance[key]:.4g} is allowed; no speed is reported"
            )
    return differences


def as_numbers(texts: Sequence[str]) -> np.ndarray:
    """Texts as their hashes (n, 32) uint8: a largest difference of 0 says that all are the same."""
    digests = b"".join(hashlib.sha256(text.encode()).digest() for text in texts)
    return np.frombuffer(digests, np.uint8).reshape(len(texts), -1)


def _largest_difference(name: str, key: str, ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape:
        raise UnequalError(
            f"{name} has other results: {key} has the shape {theirs.shape}, and not {ours.shape}; no speed is reported"
        )
    differences = [
        np.abs(mine.astype(np.float64) - other.astype(np.float64)).max(initial=0.0)
        for mine, other in zip(np.atleast_1d(ours), np.atleast_1d(theirs), strict=True)
    ]
    return float(np.max(differences, initial=0.0))  # NaN stays NaN


def _in_turn(ours: Act, theirs: Act, pairs: int, what: str, progress: ReportText) -> tuple[list[float], list[float]]:
    """Seconds of both, one item a pair: a, b, a, b, …"""
    seconds: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        progress(f"{what}, pair {pair + 1} of {pairs}")
        for act, times in zip((ours, theirs), seconds, strict=True):
            gc.collect()
            started = time.perf_counter()
            act()
            times.append(time.perf_counter() - started)
    return seconds


def _pairing(
    rival: Contender, is_floor: bool, ours_s: list[float], theirs_s: list[float], differences: dict[str, float]
) -> Pairing:
    ours = Spread.of(ours_s)
    theirs = Spread.of(theirs_s)
    return Pairing(
        name=rival.name,
        what=rival.what,
        versions=rival.versions,
        is_floor=is_floor,
        ours_s=ours,
        theirs_s=theirs,
        ratio=theirs.median / ours.median,
        ratios=Spread.of([other / mine for mine, other in zip(ours_s, theirs_s, strict=True)]),
        differences=differences,
    )

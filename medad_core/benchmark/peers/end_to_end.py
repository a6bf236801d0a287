"""Volumes to predictions: the command `medad screen` beside scripts around the same models.

One decision: everybody is started as a process, and timed from its start to its end: imports, models and engine are
part of the work. medad also checks, computes metrics with intervals and draws the page; the loop does none of these.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from medad_core.benchmark.duel import PAIRS, Act, Contender, Contest, DuelReport, Fact, Result, as_numbers, duel
from medad_core.benchmark.peers.scripts import VALUES
from medad_core.benchmark.trace import trace_of
from medad_core.config import Settings, settings_to_yaml
from medad_core.errors import MedadError
from medad_core.progress import ReportText
from medad_core.run.gather import find_cohort
from medad_core.run.run import Run
from medad_core.store import PART_STAGES, join, read_table, write_bytes
from medad_core.surroundings.processes import piped_environment, python_command

_SCRIPTS = "medad_core.benchmark.peers.scripts"
_OURS = "medad-"  # begins the names of medad's runs
_COLUMNS = ("case_id", "slice_index", "anomaly_score", "p_yes")


@dataclass(frozen=True)
class Screening:
    """Cases below `data`, and an empty folder for what is made of them."""

    data: str
    settings: Settings
    scratch: str


def benchmark_end_to_end(
    data: str,
    settings: Settings,
    against: Sequence[str] = (),
    pairs: int = PAIRS,
    progress: ReportText = lambda _text: None,
    trace: str | None = None,
) -> DuelReport:
    """Screen every case below `data`; `trace` is where the timeline of medad's last run is written (`trace_of`).

    Raises UsageError and UnequalError as `duel`, MedadError where a process fails.
    """
    END_TO_END.chosen(against)
    cases = [member for member in find_cohort(data, settings.data).members if member.rejected is None]
    with tempfile.TemporaryDirectory(prefix="medad-benchmark-") as scratch:
        described = f"{len(cases)} cases, encoder {settings.models.encoder}, LLM {settings.llm.model}"
        report = duel(END_TO_END, Screening(data, settings, scratch), described, against, pairs, progress)
        if trace is not None:
            last = max(Path(scratch).glob(f"{_OURS}*"), key=lambda run: run.stat().st_ctime_ns)
            write_bytes(trace, trace_of(Run.reopen(str(last))))
    return report.with_facts(Fact("cases", len(cases), ""))


def _act(given: Screening, make: Callable[[str, str], None], table: str, prefix: str = "") -> Act:
    """An act that makes a run in a new folder with `make(run, settings)`; its values are in `table`."""
    settings = settings_to_yaml(given.settings)

    def act() -> Callable[[], Result]:
        run = tempfile.mkdtemp(prefix=prefix, dir=given.scratch)
        make(run, settings)
        return partial(_values, join(run, table))

    return act


def _values(uri: str) -> Result:
    rows = read_table(uri).select(_COLUMNS).sort_by([(name, "ascending") for name in _COLUMNS[:2]])
    keys = [f"{case_id} {at}" for case_id, at in zip(*(rows[name].to_pylist() for name in _COLUMNS[:2]), strict=True)]
    numbers = {name: rows[name].cast(pa.float64()).to_numpy() for name in _COLUMNS[2:]}
    return {"slices": as_numbers(keys), **numbers}


def _by_medad(given: Screening) -> Act:
    file = Path(given.scratch) / "settings.yaml"

    def make(run: str, settings: str) -> None:
        file.write_text(settings, encoding="utf-8")
        # By its name: the core must not import the flows, and a process of its own can.
        _start(["-m", "flows.cli", "screen", given.data, "--out", run, "--config", str(file)])

    return _act(given, make, "predictions.parquet", _OURS)


def _by_scripts(given: Screening) -> Act:
    def make(run: str, settings: str) -> None:
        for words in (*(["stage", name] for name in PART_STAGES), ["results"]):
            _start(["-m", _SCRIPTS, *words, given.data, run], settings)

    return _act(given, make, "predictions.parquet")


def _by_loop(given: Screening) -> Act:
    def make(run: str, settings: str) -> None:
        _start(["-m", _SCRIPTS, "loop", given.data, run], settings)

    return _act(given, make, VALUES)


def _start(words: Sequence[str], text: str = "") -> None:
    done = subprocess.run(
        python_command(*words), input=text.encode(), capture_output=True, env=piped_environment(), check=False
    )
    if done.returncode not in (0, 3):  # 3: some cases were rejected
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise MedadError(f"{' '.join(words[1:3])} failed: {lines[-1]}")


END_TO_END: Contest[Screening] = Contest(
    work="end-to-end",
    ours=Contender("medad", "the command `medad screen`, with Prefect, metrics and page", _by_medad),
    peers=(
        Contender(
            "one-at-a-time",
            "re-stated: AnomalyGPT's loop, one picture and one prompt at a time; no metrics, no page",
            _by_loop,
        ),
        Contender("scripts", "re-stated: the same stages as separate plain scripts, a process each", _by_scripts),
    ),
    # Maps are stored in half precision; p(yes) follows them.
    tolerance={"slices": 0.0, "anomaly_score": 1e-3, "p_yes": 1e-3},
)

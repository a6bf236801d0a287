"""What orchestration costs: the stages `slices` and `maps` in a plain loop and through Prefect.

One decision: every measurement is a process of its own, because memory is its peak and start-up belongs to neither;
loop and flows take turns, so that both have the same neighbours. This module has the cohort, the loop and the
arithmetic; the flows are handed in by who may import them (`flows.cli.orchestration`).
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from medad_core.benchmark.memory import peak_mb
from medad_core.benchmark.spread import Spread
from medad_core.config import Settings, settings_to_yaml
from medad_core.errors import MedadError
from medad_core.run.cohort import settle_cohort
from medad_core.run.gather import find_cohort
from medad_core.run.run import Run
from medad_core.stages.complete import complete_stage, plan_stage
from medad_core.stages.screen import LoopExecutor
from medad_core.surroundings.processes import piped_environment, python_command

PARTS = (1, 10, 100)
WAYS = ("loop", "flows")
DRAWN = 4  # different phantoms; the cohort repeats them
STAGES = ("slices", "maps")
Way = Callable[[Run], float]  # to the seconds of a start-up, which is no work


@dataclass(frozen=True)
class Measured:
    """One process: seconds of work, seconds of start-up before it (not in `work_s`), and peak RSS in MB."""

    work_s: float
    start_s: float
    peak_mb: float


@dataclass(frozen=True)
class Size:
    """Both ways at one number of parts. `added` is what Prefect adds to the loop of the same turn, as a share of it."""

    parts: int
    loop_s: Spread
    flows_s: Spread
    added: Spread
    start_s: Spread
    loop_mb: Spread
    flows_mb: Spread


@dataclass(frozen=True)
class OrchestrationReport:
    """`growth` is the median peak RSS through Prefect at the last size over that at the one before, less 1."""

    cases_per_part: int
    slices_per_case: int
    sizes: tuple[Size, ...]
    growth: float
    seconds: float


def benchmark_orchestration(
    settings: Settings, parts: Sequence[int] = PARTS, turns: int = 3, progress: Callable[[str], None] = print
) -> OrchestrationReport:
    """Measure both ways at each number of parts, `turns` times in turn, on phantoms.

    Raises MedadError where a process fails.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="medad-") as scratch:
        phantoms = Path(scratch) / "phantoms"
        progress(f"drawing {DRAWN} phantoms")
        from medad_core.data.phantom import generate_cohort

        drawn = generate_cohort(phantoms, DRAWN, seed=0)
        sizes = []
        for count in parts:
            data = repeated(phantoms, drawn, Path(scratch) / f"cohort-{count}", count * settings.data.cases_per_part)
            measured = [_turn(data, settings, turn, f"{count} parts", progress) for turn in range(turns)]
            sizes.append(_size(count, measured))
    slices = settings.data.last_slice - settings.data.first_slice + 1
    growth = sizes[-1].flows_mb.median / sizes[-2].flows_mb.median - 1 if len(sizes) > 1 else 0.0
    elapsed_s = time.perf_counter() - started
    return OrchestrationReport(settings.data.cases_per_part, slices, tuple(sizes), growth, elapsed_s)


def _turn(data: Path, settings: Settings, turn: int, what: str, progress: Callable[[str], None]) -> dict[str, Measured]:
    """Both ways once. What comes second finds the files in memory, so they take turns in going first."""
    measured = {}
    for way in WAYS[:: -1 if turn % 2 else 1]:
        progress(f"{what}, {way}, turn {turn + 1}")
        with tempfile.TemporaryDirectory(dir=data.parent) as folder:
            measured[way] = _in_process(way, data, Path(folder) / "run", settings_to_yaml(settings))
    return measured


def repeated(phantoms: Path, drawn: Sequence[str], cohort: Path, cases: int) -> Path:
    """A cohort of so many cases, whose files are links to those of the drawn phantoms in turn."""
    for number in range(cases):
        source, case_id = drawn[number % len(drawn)], f"BraTS2021_{90000 + number:05d}"
        folder = cohort / case_id
        folder.mkdir(parents=True)
        for file in (phantoms / source).iterdir():
            (folder / file.name.replace(source, case_id)).symlink_to(file)
    return cohort


def loop(run: Run) -> float:
    """The plain loop: what anybody would write around the core."""
    for name in STAGES:
        plan_stage(run, name)
        complete_stage(run, name, LoopExecutor(run, name))
    return 0.0


def measure(way: Way, data: str, run: str, settings: Settings) -> Measured:
    """Do the work in this process and measure it. Models are loaded by the stages; torch is imported before."""
    import torch  # noqa: F401  (imports are no work of either)

    from medad_core.stages import maps, slices  # noqa: F401

    settle_cohort(run, find_cohort(data, settings.data))
    opened = Run.reopen(run, settings)
    started = time.perf_counter()
    start_s = way(opened)
    return Measured(time.perf_counter() - started - start_s, start_s, peak_mb())


def _in_process(way: str, data: Path, run: Path, settings: str) -> Measured:
    # By its name: the core must not import the flows, and a process of its own can.
    command = python_command("-m", "flows.cli.orchestration", way, str(data), str(run))
    environment = {**piped_environment(), "PREFECT_LOGGING_LEVEL": "CRITICAL"}
    done = subprocess.run(
        command,
        input=settings,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"]
        raise MedadError(f"the {way} failed: {lines[-1]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _size(parts: int, turns: Sequence[dict[str, Measured]]) -> Size:
    def spread(way: str, name: str) -> Spread:
        return Spread.of([asdict(turn[way])[name] for turn in turns])

    added = Spread.of([turn["flows"].work_s / turn["loop"].work_s - 1 for turn in turns])
    return Size(
        parts,
        spread("loop", "work_s"),
        spread("flows", "work_s"),
        added,
        spread("flows", "start_s"),
        spread("loop", "peak_mb"),
        spread("flows", "peak_mb"),
    )

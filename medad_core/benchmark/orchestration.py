"""What orchestration costs: the stages `slices` and `maps` as a plain loop and through Prefect's flows and tasks: `medad benchmark orchestration`.

One decision: every measurement is a process of its own, because memory is its peak and start-up belongs to neither; loop and flows take turns,
so that both have the same neighbours. This module has the cohort, the loop and the arithmetic; the flows are handed in by who may import them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from medad_core.benchmark.timing import Spread
from medad_core.config import Settings, settings_from_yaml, settings_to_yaml
from medad_core.errors import MedadError

PARTS = (1, 10, 100)
WAYS = ("loop", "flows")
DRAWN = 4  # different phantoms; the cohort repeats them
Way = Callable[[str, str], float]  # (run, settings) to start-up seconds, with which work has nothing to do


@dataclass(frozen=True)
class Measured:
    """One process: seconds of work, of them those before the first part could begin (`start_s` is not in `work_s`), and peak RSS in MB."""

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
    """Measure both ways at each number of parts, `turns` times in turn, on phantoms. Raises MedadError where a process fails."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="medad-") as scratch:
        phantoms = Path(scratch) / "phantoms"
        progress(f"drawing {DRAWN} phantoms")
        from medad_core.data.phantom import generate_cohort

        drawn = generate_cohort(phantoms, DRAWN, seed=0)
        sizes = []
        for count in parts:
            data = repeated(phantoms, drawn, Path(scratch) / f"cohort-{count}", count * settings.data.cases_per_part)
            measured = []
            for turn in range(turns):
                order = WAYS[:: -1 if turn % 2 else 1]  # what comes second finds the files in memory
                measured.append(
                    {
                        way: _measured(
                            way,
                            data,
                            Path(scratch),
                            settings,
                            progress,
                            f"{count} parts, {way}, turn {turn + 1} of {turns}",
                        )
                        for way in order
                    }
                )
            sizes.append(_size(count, measured))
    slices = settings.data.last_slice - settings.data.first_slice + 1
    growth = sizes[-1].flows_mb.median / sizes[-2].flows_mb.median - 1 if len(sizes) > 1 else 0.0
    return OrchestrationReport(
        settings.data.cases_per_part, slices, tuple(sizes), growth, time.perf_counter() - started
    )


def repeated(phantoms: Path, drawn: Sequence[str], cohort: Path, cases: int) -> Path:
    """A cohort of so many cases, whose files are links to those of the drawn phantoms in turn."""
    for number in range(cases):
        source, case_id = drawn[number % len(drawn)], f"BraTS2021_{90000 + number:05d}"
        folder = cohort / case_id
        folder.mkdir(parents=True)
        for file in (phantoms / source).iterdir():
            (folder / file.name.replace(source, case_id)).symlink_to(file)
    return cohort


def loop(run: str, settings: str) -> float:
    """The plain loop: what anybody would write around the core."""
    from medad_core.run.cohort import cohort_of
    from medad_core.stages import maps, slices
    from medad_core.stages.common import stage_of, write_rejected

    chosen = settings_from_yaml(settings)
    slices.plan(run, chosen, cohort_of(run))
    for name, module in (("slices", slices), ("maps", maps)):
        if module is maps:
            maps.plan(run, chosen)
        stage = stage_of(run, name)
        module.run_parts(run, chosen, stage.pending())
        stage.finish()
        write_rejected(run)
    return 0.0


def measure(way: Way, data: str, run: str, settings: str) -> Measured:
    """Do the work in this process and say what it took."""
    import torch  # noqa: F401  (imports are no work of either)

    from medad_core.run.cohort import find_cohort, settle_cohort
    from medad_core.stages import maps, slices  # noqa: F401

    settle_cohort(run, find_cohort(data, settings_from_yaml(settings).data))
    started = time.perf_counter()
    start_s = way(run, settings)
    return Measured(time.perf_counter() - started - start_s, start_s, peak_mb())


def peak_mb() -> float:
    """Peak resident memory of this process in MB; of this program alone, where the system says so (Linux counts the parent's before exec elsewhere)."""
    try:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def _measured(
    way: str, data: Path, scratch: Path, settings: Settings, progress: Callable[[str], None], what: str
) -> Measured:
    progress(what)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        return _in_process(way, data, Path(folder) / "run", settings_to_yaml(settings))


def _in_process(way: str, data: Path, run: Path, settings: str) -> Measured:
    # By its name: the core must not import the flows, and a process of its own can.
    command = [sys.executable, "-m", "flows.cli.orchestration", way, str(data), str(run)]
    done = subprocess.run(
        command, input=settings, capture_output=True, text=True, env={**os.environ, "PREFECT_LOGGING_LEVEL": "CRITICAL"}
    )
    if done.returncode:
        raise MedadError(
            f"the {way} failed: {(done.stderr.strip().splitlines() or [f'its process ended with {done.returncode}'])[-1]}"
        )
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

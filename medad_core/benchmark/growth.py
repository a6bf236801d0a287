"""How screening grows with the cohort: `medad benchmark growth DATA`.

One decision: the same cases several times, under other names, so that a slice is the same work in every size. Every
size is a run in a process of its own, whose peak of memory is its own. The start of models is kept apart from the time
of a slice, as it is paid once.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from medad_core.benchmark.machine import code_commit, cpu_name
from medad_core.benchmark.memory import peak_mb
from medad_core.benchmark.stages import screened
from medad_core.config import Settings
from medad_core.errors import UsageError
from medad_core.progress import ReportText
from medad_core.run.cohort import Member
from medad_core.run.gather import find_cohort
from medad_core.surroundings.processes import spawn_context

TIMES = (1, 4, 16)
EVALUATION = "evaluation"


@dataclass(frozen=True)
class Size:
    """A run of the cases so many `times`.

    `slice_ms` are milliseconds a slice of every stage's parts and of the evaluation, `start_s` is what stages take
    beside their parts, and `peak_mb` is the peak of resident memory.
    """

    times: int
    cases: int
    slices: int
    slice_ms: dict[str, float]
    start_s: float
    peak_mb: float

    @property
    def all_ms(self) -> float:
        """Milliseconds a slice through all stages."""
        return sum(self.slice_ms.values())


@dataclass(frozen=True)
class GrowthReport:
    """Runs by size, the smallest first, and where they were measured."""

    commit: str
    date: str
    device: str
    sizes: tuple[Size, ...]

    @property
    def time_growth(self) -> float:
        """The time of a slice in the largest run, in that of the smallest."""
        return self.sizes[-1].all_ms / self.sizes[0].all_ms

    @property
    def memory_growth(self) -> float:
        """The peak of memory of the largest run, in that of the smallest."""
        return self.sizes[-1].peak_mb / self.sizes[0].peak_mb


def benchmark_growth(
    data: str, settings: Settings, times: Sequence[int] = TIMES, progress: ReportText = lambda _text: None
) -> GrowthReport:
    """Screen the cases of `data` as often as `times` say. Raises UsageError where none is usable, and as screening."""
    if not any(member.rejected is None for member in find_cohort(data, settings.data).members):
        raise UsageError(f"{data} has no usable case; growth needs one, better four")
    sizes = []
    for count in sorted(times):
        progress(f"the cases {count} times")
        with (
            tempfile.TemporaryDirectory(prefix="medad-benchmark-") as out,
            ProcessPoolExecutor(1, spawn_context()) as own,
        ):
            sizes.append(own.submit(_measure, data, str(Path(out) / "run"), settings, count).result())
    return GrowthReport(code_commit(), datetime.now(UTC).date().isoformat(), cpu_name(), tuple(sizes))


def _measure(data: str, out: str, settings: Settings, times: int) -> Size:
    cohort = find_cohort(data, settings.data)
    usable = [member for member in cohort.members if member.rejected is None]
    members = list(islice(_repeated(usable), times * len(usable)))
    made = screened(data, out, cohort, members, settings)
    manifests = {name: stage.require_finished() for name, stage in made.run.stages.items()}
    slices = manifests["slices"].rows
    seconds = {name: sum(part.seconds for part in manifest.parts) for name, manifest in manifests.items()}
    slice_ms = {name: 1000 * each / slices for name, each in (seconds | {EVALUATION: made.evaluation_s}).items()}
    return Size(times, len(members), slices, slice_ms, sum(made.starts_s.values()), peak_mb())


def _repeated(members: Sequence[Member]) -> Iterator[Member]:
    """The cases, again and again, each time as other patients."""
    turn = 0
    while True:
        for member in members:
            name = f"{member.case_id}-{turn}" if turn else member.case_id
            yield member.replace(case_id=name, patient=f"{member.patient_id}-{turn}")
        turn += 1


def growth_png(report: GrowthReport) -> bytes:
    """PNG bytes: the time of a slice by stage, and the peak of memory, by the number of slices."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    times, memory = figure.subplots(1, 2)
    labels = [f"{size.slices:,}" for size in report.sizes]
    base = [0.0] * len(labels)
    for name in report.sizes[0].slice_ms:
        values = [size.slice_ms[name] for size in report.sizes]
        times.bar(labels, values, bottom=base, width=0.6, label=name)
        base = [low + value for low, value in zip(base, values, strict=True)]
    times.set_title("milliseconds a slice", loc="left", fontsize=10)
    times.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    memory.bar(labels, [size.peak_mb for size in report.sizes], width=0.6, color="#34495e")
    memory.set_title("peak of memory, MB", loc="left", fontsize=10)
    for axes in (times, memory):
        axes.set_xlabel("slices")
        axes.spines[["top", "right"]].set_visible(False)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150, metadata={"Software": None})
    return out.getvalue()

"""What screening costs here, stage by stage: `medad benchmark stages`.

One decision: it makes ordinary runs, in this process and with one worker, so all that a run does is in the seconds. Two
runs, of a quarter of the cases and of all, because much of an evaluation takes as long for any number of cases.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import torch

from medad_core.benchmark.ceilings import rooflines
from medad_core.benchmark.profile import Evaluation, Profile, Traffic, profile_of
from medad_core.config import Settings
from medad_core.errors import UsageError
from medad_core.models.device import device_of
from medad_core.progress import ReportText
from medad_core.run.cohort import Cohort, Member, settle_cohort
from medad_core.run.gather import find_cohort
from medad_core.run.run import Run
from medad_core.stages.complete import complete_stage, plan_stage, require_cases
from medad_core.stages.evaluate import evaluate_run
from medad_core.stages.screen import LoopExecutor
from medad_core.store import PART_STAGES, join
from medad_core.store.listing import list_names
from medad_core.store.objects import bytes_read, requests_made
from medad_core.surroundings.processes import usable_cores


@dataclass(frozen=True)
class Screened:
    """A run that was made: seconds of each stage beside its parts and of the evaluation; requests to a bucket, and
    bytes read of it.
    """

    run: Run
    starts_s: dict[str, float]
    evaluation_s: float
    requests: Counter[str]
    read_bytes: int

    def traffic(self) -> Traffic | None:
        """None where the run is on a disk."""
        parts = len(self.run.stage("slices").plan().parts)
        requests = {kind: count / parts for kind, count in self.requests.items()}
        return Traffic(requests, self.read_bytes / len(self.run.cohort.members)) if requests else None


def benchmark_stages(data: str, out: str, settings: Settings, progress: ReportText) -> Profile:
    """Screen the cases of `data` into new folders below `out`, and measure that.

    Raises UsageError for fewer than two cases and for a folder that is not new, and as screening does.
    """
    if list_names(out):
        raise UsageError(f"--out {out} is not empty; a measurement needs a new folder")
    cohort = find_cohort(data, settings.data)
    usable = [member for member in cohort.members if member.rejected is None]
    if len(usable) < 2:
        raise UsageError(f"{data} has {len(usable)} usable cases; a measurement needs two, better a dozen")
    few = screened(data, join(out, "few"), cohort, usable[: max(1, len(usable) // 4)], settings, progress)
    whole = screened(data, join(out, "all"), cohort, usable, settings, progress)
    profile = profile_of(whole.run)
    progress("the peak of the device")
    peaks = rooflines(whole.run, profile)
    costs = {
        name: replace(cost, start_s=whole.starts_s[name], roofline=peaks.get(name))
        for name, cost in profile.stages.items()
    }
    device = device_of(settings)
    return replace(
        profile,
        device=torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        cores=usable_cores(),
        measured=datetime.now(UTC).date().isoformat(),
        stages=costs,
        evaluation=_evaluation(few, whole),
        traffic=whole.traffic(),
    )


def screened(
    data: str,
    out: str,
    cohort: Cohort,
    members: Sequence[Member],
    settings: Settings,
    progress: ReportText = lambda _text: None,
) -> Screened:
    """Screen `members` of the cohort of `data` into the new folder `out`, in this process. Raises as screening does."""
    asked = requests_made()
    moved = bytes_read()
    settle_cohort(out, cohort.replace(members=tuple(members)))
    run = Run.reopen(out, settings)
    starts_s = {}
    for name in PART_STAGES:
        progress(f"{len(members)} cases, {name}")
        began = time.perf_counter()
        plan_stage(run, name)
        done = complete_stage(run, name, LoopExecutor(run, name))
        starts_s[name] = time.perf_counter() - began - done.seconds
        require_cases(run, done)
    progress(f"{len(members)} cases, evaluation")
    began = time.perf_counter()
    run.note(data)
    evaluate_run(run)
    evaluation_s = time.perf_counter() - began
    return Screened(run, starts_s, evaluation_s, requests_made() - asked, bytes_read() - moved)


def _evaluation(few: Screened, whole: Screened) -> Evaluation:
    """The line through both runs."""
    cases, fewer = (len(each.run.cohort.members) for each in (whole, few))
    case_s = max(0.0, (whole.evaluation_s - few.evaluation_s) / (cases - fewer))
    return Evaluation(case_s, max(0.0, whole.evaluation_s - case_s * cases))

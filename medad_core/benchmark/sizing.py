"""What a cohort will take, from the profile of a smaller one: `medad plan`.

One decision: every figure is a measured rate times a count, and the profile says what was measured. So nothing is known
that the profile does not know: a CPU's profile says nothing of GPUs, and what is None there is left out here, by name.

Assumed: seconds, bytes and tokens grow with the number of slices; stages run one after another, each part on one
worker, all workers as fast as the one that was measured. Cases are as those of the profile: as many slices, volumes as
long.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from medad_core.benchmark.profile import Profile, StageCost
from medad_core.errors import UsageError

ON_CPU = "slices"  # the stage that uses no GPU
EVALUATE = "evaluate"
NOT_INCLUDED = (
    "waiting for machines, parts that are made again, and a network or disk that is slower than where it was measured",
    "the memory of the evaluation: one process holds a row a slice. Screen large cohorts in batches (--cohort)",
    "the bookkeeping of a large run: `medad benchmark bookkeeping`; and 3 s of Prefect a run",
)


@dataclass(frozen=True)
class StageSize:
    """A stage. `hours` pass with `workers` side by side, `busy_hours` are those of all workers together.

    `roofline_hours` would pass if each device reached its peak, and `roofline_share` is their share of the work's time.
    """

    stage: str
    workers: int
    hours: float
    busy_hours: float
    start_hours: float | None
    stored_bytes: float
    roofline_hours: float | None = None
    roofline_share: float | None = None


@dataclass(frozen=True)
class Sizing:
    """The whole. `binds` is the stage that takes longest; `gpu_hours` are reserved, also while `slices` reads.

    `stored_bytes` stay after the run, `volume_bytes` are read of the data. A bucket gets `requests`, by kind, and
    `bucket_bytes` are read of it; both are None where the profile was measured on a disk.
    """

    cases: int
    slices: int
    parts: int
    gpus: int | None
    workers: int
    stages: tuple[StageSize, ...]
    hours: float
    binds: str
    gpu_hours: float | None
    worker_hours: float
    stored_bytes: float
    volume_bytes: float
    answers: int
    prompt_tokens: int
    answer_tokens: int
    requests: dict[str, int] | None
    bucket_bytes: float | None
    not_included: tuple[str, ...]


@dataclass(frozen=True)
class _Wanted:
    """Counts of the cohort, and the workers of CPU and GPU stages."""

    profile: Profile
    cases: int
    slices: int
    parts: int
    gpus: int | None
    workers: int

    def workers_of(self, name: str, cost: StageCost) -> int:
        """How many work side by side; never more than there are parts."""
        many = self.workers if self.gpus is None or name == ON_CPU else max(1, self.gpus // cost.gpus)
        return min(many, self.parts)


def size_cohort(profile: Profile, cases: int, gpus: int | None = None, workers: int | None = None) -> Sizing:
    """What `cases` cases take. `gpus` are those of maps, prompts and answers, `workers` the processes of `slices`, or
    of all stages where there are no GPUs; by default as many as there are GPUs, or one.

    Raises UsageError where the profile cannot say: it was measured on a CPU and is asked of GPUs.
    """
    if gpus is not None and profile.device in ("cpu", "mps"):
        raise UsageError(
            f"--gpus: the profile was measured on {profile.device}, and says nothing of GPUs; measure one there with "
            "`medad benchmark stages`, or give --workers"
        )
    slices = round(cases * profile.slices / profile.cases)
    wanted = _Wanted(profile, cases, slices, ceil(cases / profile.cases_per_part), gpus, workers or gpus or 1)
    stages = tuple(_stage(wanted, name, cost) for name, cost in profile.stages.items())
    stages += tuple(_evaluate(wanted))
    hours = sum(stage.hours for stage in stages)
    answers = slices * profile.questions
    traffic = profile.traffic
    return Sizing(
        cases=cases,
        slices=slices,
        parts=wanted.parts,
        gpus=gpus,
        workers=wanted.workers,
        stages=stages,
        hours=hours,
        binds=max(stages, key=lambda stage: stage.hours).stage,
        gpu_hours=None if gpus is None else gpus * hours,
        worker_hours=wanted.workers * hours,
        stored_bytes=sum(stage.stored_bytes for stage in stages) + cases * profile.result_bytes,
        volume_bytes=cases * profile.volume_bytes,
        answers=answers,
        prompt_tokens=round(answers * profile.prompt_tokens),
        answer_tokens=round(answers * profile.answer_tokens),
        requests=traffic and {kind: round(each * wanted.parts) for kind, each in traffic.requests.items()},
        bucket_bytes=traffic and cases * traffic.read_bytes,
        not_included=tuple(_left_out(profile)),
    )


def _stage(wanted: _Wanted, name: str, cost: StageCost) -> StageSize:
    workers = wanted.workers_of(name, cost)
    work_s = wanted.slices * cost.slice_s
    # The last round of parts may leave workers idle.
    elapsed_s = work_s / wanted.parts * ceil(wanted.parts / workers)
    start_s = cost.start_s or 0.0
    least_s = None if cost.roofline is None else wanted.slices * cost.roofline.least_s
    return StageSize(
        stage=name,
        workers=workers,
        hours=(elapsed_s + start_s) / 3600,
        busy_hours=(work_s + workers * start_s) / 3600,
        start_hours=None if cost.start_s is None else start_s / 3600,
        stored_bytes=wanted.slices * cost.slice_bytes,
        roofline_hours=None if least_s is None else least_s / workers / 3600,
        roofline_share=None if least_s is None else least_s / work_s,
    )


def _evaluate(wanted: _Wanted) -> list[StageSize]:
    """One process makes it. Its results are counted beside the stages."""
    evaluation = wanted.profile.evaluation
    if evaluation is None:
        return []
    hours = (evaluation.fixed_s + wanted.cases * evaluation.case_s) / 3600
    return [StageSize(EVALUATE, 1, hours, hours, evaluation.fixed_s / 3600, 0.0)]


def _left_out(profile: Profile) -> list[str]:
    """What nobody measured, then what nothing of this kind can say."""
    unknown = []
    if profile.device is None:
        unknown.append("which machine the run was made on: a RUN does not say so")
    if profile.evaluation is None:
        unknown.append("the evaluation, and how long models load: a RUN does not say so, `medad benchmark stages` does")
    if profile.traffic is None:
        unknown.append("what a bucket is asked for: `medad benchmark stages DATA --out s3://…` measures that")
    return [*unknown, *NOT_INCLUDED]

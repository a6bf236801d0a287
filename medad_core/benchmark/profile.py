"""What screening costs where it was measured: the profile with which `medad plan` sizes a cohort.

One decision: everything in it was measured. Seconds, rows and bytes are those of the part records of a finished run,
volumes are what it read, tokens what it generated. What a run does not record (how long models load, the evaluation,
the peak of the device, requests to a bucket) comes from `medad benchmark stages`, and is None in the profile of a RUN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Annotated

import msgspec
import numpy as np

from medad_core.benchmark.spread import Spread
from medad_core.errors import UsageError, first_line
from medad_core.run.fingerprints import asked_questions
from medad_core.run.info import has_run_info
from medad_core.run.run import Run
from medad_core.store import Stage, StageManifest
from medad_core.store.files import absolute, local_path, read_bytes
from medad_core.store.listing import tree_bytes

Positive = Annotated[int, msgspec.Meta(ge=1)]
SAMPLED = 20  # parts of answers whose tokens are counted
HOW = "`medad benchmark stages DATA --json FILE` measures one"


@dataclass(frozen=True)
class Roofline:
    """What a slice needs at least: its operations at the rate of the fastest matrix product, or its bytes at that of a
    copy in memory, whichever takes longer. Rates are a second.
    """

    flops: float
    flops_s: float
    bytes: float
    bytes_s: float

    @property
    def least_s(self) -> float:
        """Seconds of a slice."""
        return max(self.flops / self.flops_s, self.bytes / self.bytes_s)


@dataclass(frozen=True)
class StageCost:
    """A stage with one worker, on `gpus` GPUs where it uses any. `part_slice_s` is the spread of its parts, `start_s`
    passes beside them, mostly to load models.
    """

    slice_s: float
    part_slice_s: Spread
    slice_bytes: float
    gpus: int = 1
    start_s: float | None = None
    roofline: Roofline | None = None


@dataclass(frozen=True)
class Evaluation:
    """The evaluation, which one process makes: seconds a case, and those that any number of cases takes."""

    case_s: float
    fixed_s: float


@dataclass(frozen=True)
class Traffic:
    """What a run in a bucket asked of it, with one process: requests a part by kind, through all stages, and the bytes
    that a case had read, volumes included where they are in a bucket too.
    """

    requests: dict[str, float]
    read_bytes: float


@dataclass(frozen=True)
class Profile:
    """What was measured, on how much.

    `volume_bytes` are read of the volume and mask of a case, `result_bytes` a case are all files of the run beside the
    parts of its stages. `prompt_tokens` and `answer_tokens` are of one question about one slice. `traffic` is
    None where the run was on a disk.
    """

    device: str | None
    cores: int | None
    measured: str | None
    cases: Positive
    slices: Positive
    cases_per_part: Positive
    volume_bytes: float
    result_bytes: float
    questions: Positive
    prompt_tokens: float
    answer_tokens: float
    stages: dict[str, StageCost]
    evaluation: Evaluation | None = None
    traffic: Traffic | None = None


def load_profile(uri: str) -> Profile:
    """The profile in a file, or that of a finished run. Raises UsageError, and StoreError for a run that is not."""
    if has_run_info(uri):
        return profile_of(Run.reopen(absolute(uri)))
    folder = local_path(uri)
    data = None if folder is not None and folder.is_dir() else read_bytes(uri)
    if data is None:
        raise UsageError(f"--profile {uri}: there is neither a finished RUN nor a profile; {HOW}")
    try:
        return msgspec.json.decode(data, type=Profile)
    except msgspec.MsgspecError as error:
        raise UsageError(f"--profile {uri} is no profile ({first_line(error)}); {HOW}") from error


def profile_of(run: Run) -> Profile:
    """The profile that a finished run is. Raises StoreError where it is unfinished, UsageError where it is empty."""
    manifests = {name: stage.require_finished() for name, stage in run.stages.items()}
    slices = manifests["slices"]
    if not all(manifest.rows for manifest in manifests.values()):
        raise UsageError(f"--profile {run.uri} has no slices, so nothing was measured; {HOW}")
    questions = len(asked_questions(run.settings))
    stages = {name: _cost(manifest, manifest.rows) for name, manifest in manifests.items()}
    llm = run.settings.llm
    answers = _cost(manifests["answers"], manifests["answers"].rows // questions)  # its rows are questions
    stages["answers"] = replace(answers, gpus=llm.tensor_parallel_size * llm.data_parallel_size)
    stored = sum(part.bytes for manifest in manifests.values() for part in manifest.parts)
    return Profile(
        device=None,
        cores=None,
        measured=None,
        cases=slices.done,
        slices=slices.rows,
        cases_per_part=run.settings.data.cases_per_part,
        volume_bytes=_volume_bytes(run) / slices.done,
        result_bytes=(tree_bytes(run.uri) - stored) / slices.done,
        questions=questions,
        prompt_tokens=_prompt_tokens(run),
        answer_tokens=_answer_tokens(run.stage("answers")),
        stages=stages,
    )


def _cost(manifest: StageManifest, slices: int) -> StageCost:
    rows_a_slice = manifest.rows / slices
    rates = [part.seconds / part.rows * rows_a_slice for part in manifest.parts if part.rows]
    return StageCost(manifest.seconds / slices, Spread.of(rates), sum(part.bytes for part in manifest.parts) / slices)


def _volume_bytes(run: Run) -> int:
    """What was read of all volumes and masks."""
    plan = run.stage("slices").plan()
    parts = run.inputs.read_all([part.number for part in plan.parts], plan.sha256)
    return sum(file.read for _, inputs in parts for files in inputs.cases.values() for file in files)


def _prompt_tokens(run: Run) -> float:
    from medad_core.stages.answers import Asking  # torch takes seconds

    asking = Asking.of(run.settings, asked_questions(run.settings))
    soft = run.stage("prompts").read_part(_some(run.stage("prompts"))[0], ["tokens"])["tokens"][0].as_py()
    own = soft - int(asking.prompts[0].image)
    return fmean(prompt.length(len(asking.knowledge), own) for prompt in asking.prompts)


def _answer_tokens(answers: Stage) -> float:
    tables = [answers.read_part(number, ["tokens"])["tokens"].to_numpy() for number in _some(answers)]
    return float(np.concatenate(tables).mean())


def _some(stage: Stage) -> Sequence[int]:
    """Parts with rows, spread evenly over the stage."""
    with_rows = [part.number for part in stage.require_finished().parts if part.rows]
    return with_rows[:: max(1, len(with_rows) // SAMPLED)]

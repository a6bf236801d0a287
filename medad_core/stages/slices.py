"""Volumes to slices: every usable case becomes upright, scaled 8-bit pictures in `RUN/slices/`.

One decision: what was read of the files of a part is recorded before the part counts. If a part is made again of other
bytes than later stages know, these stages forget its cases first. The cases of a part are read in as many threads as
there are cores, because inflating and arithmetic let others work.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import pyarrow as pa

from medad_core.config import Settings
from medad_core.data.place import Place
from medad_core.data.read import read_slices
from medad_core.data.reads import FileRead, reads_kept
from medad_core.errors import CaseError
from medad_core.models.view import CONTEXT_MM
from medad_core.run.cohort import below
from medad_core.run.fields import PICTURE, SPLIT, declared_fields, settings_fields
from medad_core.run.fingerprints import view_of
from medad_core.run.inputs import PartInputs
from medad_core.run.run import Run
from medad_core.run.staleness import forget_cases
from medad_core.stages.parts import OnPart, ignore_part, run_casewise
from medad_core.stages.rows import slice_rows
from medad_core.store import PartRecord, Plan
from medad_core.surroundings.processes import usable_cores

log = logging.getLogger(__name__)
T = TypeVar("T")
Reads = tuple[FileRead, ...]


def plan(run: Run) -> Plan:
    """Cut the cohort into parts of `data.cases_per_part` cases.

    Rejected cases are included, so that they are counted like all others.
    """
    cases = [member.case_id for member in run.cohort.members]
    size = run.settings.data.cases_per_part
    parts = [cases[start : start + size] for start in range(0, len(cases), size)]
    fingerprint = {**settings_fields(run.settings, *PICTURE, *SPLIT), **declared_fields(run.settings)}
    context = view_of(run.settings).context_mm
    if context:
        fingerprint[CONTEXT_MM] = str(context)
    return run.stage("slices").prepare({**fingerprint, "cohort": run.cohort.content}, parts)


@contextmanager
def opened(_run: Run) -> Iterator[None]:
    """Nothing: the stage has no models."""
    yield


def run_parts(
    run: Run, numbers: Sequence[int], on_part: OnPart = ignore_part, _models: None = None
) -> list[PartRecord]:
    """Read, turn, scale and write the cases of the given parts, and record what was read."""
    cohort = run.cohort
    settings = run.settings.data.model_copy(update={"context_mm": view_of(run.settings).context_mm or None})
    members = {member.case_id: member for member in cohort.members}
    read: dict[str, Reads] = {}
    warnings: dict[str, str] = {}
    places: dict[str, Place] = {}

    def make(case_id: str) -> pa.Table:
        member = members[case_id]
        with reads_kept() as reads:
            try:
                if member.rejected is not None:
                    raise CaseError(case_id, member.rejected)
                slices = read_slices(cohort.case(member, settings.modality), settings)
                if doubts := [check.reason for check in slices.checks if check.reason]:
                    warnings[case_id] = "; ".join(doubts)
                if slices.place is not None:
                    places[case_id] = slices.place
                return slice_rows(slices, member.split)
            finally:
                read[case_id] = tuple(file.replace(path=below(cohort.root, file.path)) for file in reads)

    def record_inputs(number: int) -> None:
        _record_inputs(run, number, read, warnings, places)
        for noted in (read, warnings, places):
            noted.clear()

    return run_casewise(run.stage("slices"), numbers, make, on_part, record_inputs, reading_threads(run.settings))


def reading_threads(settings: Settings) -> int:
    """How many cases of a part are read at once: `models.threads`, else a worker's share of the cores."""
    flow = settings.flow
    share = flow.ray_workers.slices.cpus if flow.runner == "ray" else usable_cores() / flow.max_workers
    return settings.models.threads or max(1, int(share))


def _record_inputs(
    run: Run, number: int, read: dict[str, Reads], warnings: dict[str, str], places: dict[str, Place]
) -> None:
    """Record what was read for a part. Stages that know other content of a case forget it first."""
    plan = run.stage("slices").plan()
    before = run.inputs.read(number, plan.sha256)
    known = {} if before is None else before.cases
    read = {case_id: read[case_id] for case_id in plan.parts[number].inputs}  # threads may have ended in another order
    other = [case_id for case_id, files in read.items() if _content(known.get(case_id)) != _content(files)]
    later = [stage for name, stage in run.stages.items() if name != "slices"]
    for part in forget_cases(later, other):
        log.warning("%s is made again: slices part %d was made again of other files", part, number)
    noted = PartInputs(plan_sha256=plan.sha256, cases=read, warnings=_like(read, warnings), places=_like(read, places))
    run.inputs.write(number, noted)


def _like(read: Mapping[str, Reads], noted: dict[str, T]) -> dict[str, T]:
    """The notes in the order of the cases that were read."""
    return {case_id: noted[case_id] for case_id in read if case_id in noted}


def _content(files: Reads | None) -> object:
    return None if files is None else [(file.path, *file.content) for file in files]

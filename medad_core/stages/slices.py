"""Volumes to slices: every usable case becomes upright, scaled 8-bit pictures in `RUN/slices/`."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from medad_core.data.read import read_slices
from medad_core.errors import CaseError
from medad_core.run.fields import PICTURE, SPLIT, settings_fields
from medad_core.run.run import Run
from medad_core.stages.parts import OnPart, ignore_part, run_casewise
from medad_core.stages.rows import slice_rows
from medad_core.store import PartRecord, Plan


def plan(run: Run) -> Plan:
    """Cut the cohort into parts of `data.cases_per_part` cases.

    Rejected cases are included, so that they are counted like all others.
    """
    cases = [member.case_id for member in run.cohort.members]
    size = run.settings.data.cases_per_part
    parts = [cases[start : start + size] for start in range(0, len(cases), size)]
    fingerprint = settings_fields(run.settings, *PICTURE, *SPLIT)
    return run.stage("slices").prepare({**fingerprint, "cohort": run.cohort.content}, parts)


def run_parts(run: Run, numbers: Sequence[int], on_part: OnPart = ignore_part) -> list[PartRecord]:
    """Read, turn, scale and write the cases of the given parts."""
    cohort = run.cohort
    settings = run.settings.data
    members = {member.case_id: member for member in cohort.members}

    def make(case_id: str) -> pa.Table:
        member = members[case_id]
        if member.rejected is not None:
            raise CaseError(case_id, member.rejected)
        return slice_rows(read_slices(cohort.case(member, settings.modality), settings), member.split)

    return run_casewise(run.stage("slices"), numbers, make, on_part)

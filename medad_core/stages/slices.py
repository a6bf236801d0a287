"""Volumes to slices: every usable case becomes upright, scaled 8-bit pictures in `RUN/slices/`."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from medad_core.config import Settings
from medad_core.data.read import read_slices
from medad_core.errors import CaseError
from medad_core.run.cohort import Cohort, cohort_of
from medad_core.stages.common import Progress, run_casewise, settings_fingerprint, stage_of
from medad_core.stages.rows import slice_rows
from medad_core.store import PartRecord, Plan


def plan(run: str, settings: Settings, cohort: Cohort) -> Plan:
    """Cut the cohort into parts of `data.cases_per_part` cases, rejected ones included: they are accounted for like all others."""
    cases = [member.case_id for member in cohort.members]
    size = settings.data.cases_per_part
    fingerprint = settings_fingerprint(
        settings, "data.modality", "data.first_slice", "data.last_slice", "data.scaling", "data.split"
    )
    return stage_of(run, "slices").prepare(
        {**fingerprint, "cohort": cohort.content}, [cases[start : start + size] for start in range(0, len(cases), size)]
    )


def run_parts(
    run: str, settings: Settings, numbers: Sequence[int], progress: Progress = lambda _: None
) -> list[PartRecord]:
    """Read, turn, scale and write the cases of the given parts."""
    cohort = cohort_of(run)
    members = {member.case_id: member for member in cohort.members}

    def make(case_id: str) -> pa.Table:
        member = members[case_id]
        if member.rejected is not None:
            raise CaseError(case_id, member.rejected)
        return slice_rows(read_slices(cohort.case(member, settings.data.modality), settings.data), member.split)

    return run_casewise(stage_of(run, "slices"), numbers, make, progress)

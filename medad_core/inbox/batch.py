"""One batch: which studies it screens, and the result of each after its run is finished.

One decision: a case whose files have changed since the plan does not count; the next batch screens it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import pyarrow.compute as pc

from medad_core.data.cases import EARLIER, Case, VolumeRef
from medad_core.data.names import patient_of
from medad_core.data.nifti import UNREADABLE
from medad_core.errors import StoreError
from medad_core.inbox.records import Batch, BatchPlan, PlannedStudy, Screening, StoredFile, Study
from medad_core.inbox.scan import unchanged
from medad_core.run.cohort import place_of
from medad_core.run.rejected import QUARANTINED, write_rejected
from medad_core.store import join, open_stages, read_table, sha256_file

PREDICTIONS = "predictions.parquet"


def histories_of(batches: Sequence[Batch]) -> dict[str, tuple[Screening, ...]]:
    """All screenings of every case, oldest first, by case_id; `batches` are oldest first."""
    screenings: dict[str, list[Screening]] = {}
    for batch in batches:
        for screening in batch.screenings:
            screenings.setdefault(screening.case_id, []).append(screening)
    return {case_id: tuple(screenings[case_id]) for case_id in sorted(screenings)}


def counting_of(batches: Sequence[Batch]) -> dict[int, dict[str, Screening]]:
    """The newest screening of every case, by the number of its batch, then by case_id; `batches` are oldest first."""
    counting: dict[int, dict[str, Screening]] = {batch.number: {} for batch in batches}
    for case_id, screenings in histories_of(batches).items():
        counting[screenings[-1].batch][case_id] = screenings[-1]
    return counting


def next_screening(study: Study, history: tuple[Screening, ...], attempts: int) -> PlannedStudy | None:
    """The screening that a study needs, None if its content needs no further screening.

    `history` contains the screenings of its case, oldest first. Quarantined content is tried `attempts` times in all.
    """
    if not history:
        return PlannedStudy(study=study, revision=1, attempt=1)
    last = history[-1]
    if last.content != study.content:
        return PlannedStudy(study=study, revision=last.revision + 1, attempt=1)
    quarantined = last.reason is not None and QUARANTINED in last.reason
    if quarantined and last.attempt < attempts:
        return PlannedStudy(study=study, revision=last.revision, attempt=last.attempt + 1)
    return None


def case_of(inbox: str, study: Study, modality: str) -> Case:
    """A study as a `Case` for `read_slices`; `inbox` is the folder where the inbox is mounted now."""

    def ref(file: StoredFile) -> VolumeRef:
        return VolumeRef(place_of(inbox, file.path), file.channel)

    return Case(
        case_id=study.case_id,
        volumes={modality: ref(study.volume)},
        mask=ref(study.mask) if study.mask else None,
        patient=study.patient or patient_of(study.case_id),
        visit=study.visit or "",
        layout=study.layout or EARLIER,
        tumour_labels=study.tumour_labels,
        pathology=study.pathology or "",
        date=study.date or "",
    )


def finished_batch(run: str, inbox: str, plan: BatchPlan) -> Batch:
    """The commit of a batch whose `run` is finished.

    Raises StoreError if a case has neither rows nor a reason, or both.
    """
    predictions = join(run, PREDICTIONS)
    rows = _rows_by_case(predictions)
    rejected = write_rejected(run, open_stages(run).values())
    reasons = {case_id: f"{stage}: {reason}" for case_id, stage, reason in rejected}
    changed = {planned.study.case_id for planned in plan.studies if _is_changed(inbox, planned.study, reasons)}
    screenings = [
        _screening(plan.number, planned, rows, reasons)
        for planned in plan.studies
        if planned.study.case_id not in changed
    ]
    return Batch(
        number=plan.number,
        opened=plan.opened,
        committed=current_time(),
        fingerprint=plan.fingerprint,
        predictions_sha256=sha256_file(predictions),
        screenings=tuple(screenings),
        changed=tuple(planned.study.case_id for planned in plan.studies if planned.study.case_id in changed),
    )


def current_time() -> str:
    """UTC in ISO format, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _is_changed(inbox: str, study: Study, reasons: Mapping[str, str]) -> bool:
    # If a volume was complete when it was hashed, and could not be read later, the study is not at fault.
    return UNREADABLE in reasons.get(study.case_id, "") or not unchanged(inbox, study)


def _rows_by_case(predictions: str) -> dict[str, int]:
    counts = pc.value_counts(read_table(predictions, ["case_id"])["case_id"])
    return dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))


def _screening(
    number: int, planned: PlannedStudy, rows_by_case: Mapping[str, int], reasons: Mapping[str, str]
) -> Screening:
    case_id = planned.study.case_id
    rows = rows_by_case.get(case_id, 0)
    if (rows > 0) == (case_id in reasons):
        reason = "a reason" if case_id in reasons else "no reason"
        raise StoreError(
            f"batch {number}: {case_id} has {rows} rows and {reason} of rejection; "
            "delete the batch's folder to screen it again"
        )
    return Screening(
        case_id=case_id,
        batch=number,
        revision=planned.revision,
        attempt=planned.attempt,
        content=planned.study.content,
        state="screened" if rows else "rejected",
        reason=reasons.get(case_id),
        slices=rows,
    )

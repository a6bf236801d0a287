"""Runs with slices, maps and facts that are made up: real stage files, without any model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from medad_core.config import load_settings
from medad_core.data.place import Place
from medad_core.data.read import CaseSlices
from medad_core.facts.case import case_table, lesion_table
from medad_core.inbox.records import Batch, Screening
from medad_core.models.decoder import render_map
from medad_core.run.cohort import Cohort, Member, write_cohort
from medad_core.run.inputs import PartInputs
from medad_core.run.run import Run
from medad_core.stages.facts import CASES_FILE, LESIONS_FILE, entries_of, facts_of, write_worklist
from medad_core.stages.rows import map_rows, slice_rows
from medad_core.store import PREDICTIONS, join, sha256_file, write_table
from medad_core.store.records import Item

SHAPE = (20, 40, 40)
TO_RAS = (0.0, 0, -1, 20, 0, -1, 0, 20, 1, 0, 0, -70)
_AWAY = (np.arange(40) - 19.5) ** 2
BRAIN = np.broadcast_to(_AWAY[:, None] + _AWAY < 350, SHAPE)


def place(slices: int = 155, to_ras: tuple[float, ...] = TO_RAS) -> Place:
    """Where pictures of 40 x 40 pixels lie."""
    return Place((40, 40, slices), to_ras, to_ras, slices, sri24=False)


def moved(by_mm: float) -> tuple[float, ...]:
    """`TO_RAS`, moved to the patient's right or left."""
    return (*TO_RAS[:3], TO_RAS[3] + by_mm, *TO_RAS[4:])


SETTINGS = load_settings(None, ["models.weights=embedded"])
SPOT, WIDE, FAR = np.s_[4:7, 4:7], np.s_[4:8, 4:9], np.s_[4:7, 10:13]  # cells of the map's grid of 16 x 16


@dataclass(frozen=True)
class Made:
    """A case whose map shows a lesion at some cells of its grid, in slices 65 to 69 of those from `first` on."""

    member: Member
    cells: tuple = (SPOT,)
    first: int = 60
    where: Place | None = field(default_factory=place)
    fails: str = ""
    p_yes: float = 0.75


def member(case_id: str, patient: str = "P", **facts) -> Member:
    return Member(case_id=case_id, split="screen", patient=patient, layout="made up", **facts)


def make_run(folder: Path, *cases: Made, smallest_ml: float = 0.05) -> Run:
    """A run with slices, maps and facts of these cases, as the stages write them."""
    run = Run(str(folder), SETTINGS)
    write_cohort(run.uri, Cohort(root=str(folder), members=tuple(one.member for one in cases)))
    slices, maps = run.stage("slices"), run.stage("maps")
    names = [one.member.case_id for one in cases]
    plan = slices.prepare({"made": "up"}, [names])
    tables = [slice_rows(_slices_of(one), "screen") for one in cases if not one.fails]
    failed = [Item(key=one.member.case_id, reason=one.fails) for one in cases if one.fails]
    slices.write_part(0, tables, failed=failed)
    slices.finish()
    places = {one.member.case_id: one.where for one in cases if one.where is not None}
    run.inputs.write(0, PartInputs(plan_sha256=plan.sha256, cases={}, places=places))
    good = [one for one in cases if not one.fails]
    maps.prepare({"made": "up"}, [[one.member.case_id for one in good]])
    grids = [_grids_of(one) for one in good]
    rows = [map_rows(table, grid, np.ones(20), np.zeros((20, 2))) for table, grid in zip(tables, grids, strict=True)]
    maps.write_part(0, rows)
    maps.finish()
    limits = SETTINGS.evaluate.model_copy(update={"smallest_lesion_ml": smallest_ml})
    facts = []
    for one, table, grid in zip(good, tables, grids, strict=True):
        above = np.stack([render_map(each, 40, 40) >= limits.map_threshold for each in grid])
        facts.append(facts_of(table, above, None, one.where, limits, one.member.phantom))
    patients = {one.member.case_id: one.member.patient_id for one in cases}
    write_table(join(run.uri, CASES_FILE), case_table(facts, patients, dict.fromkeys(names, "screen")))
    write_table(join(run.uri, LESIONS_FILE), lesion_table(facts))
    frame = _predictions_of(good)
    write_worklist(run.uri, entries_of(facts, frame, []))
    write_table(join(run.uri, "predictions.parquet"), pa.Table.from_pandas(frame, PREDICTIONS, preserve_index=False))
    run.note(str(folder))
    return run


def commit(cohort: Path, number: int, *cases: Made, rejected: dict[str, str] | None = None) -> None:
    """A batch of these cases, as the commit of a night leaves it."""
    run = cohort / "batches" / f"{number:05d}"
    run.mkdir(parents=True)
    make_run(run, *cases)
    reasons = {one.member.case_id: one.fails for one in cases if one.fails}
    screenings = [
        Screening(
            case_id=one.member.case_id,
            batch=number,
            revision=number,
            attempt=1,
            content=str(number),
            state="rejected" if one.fails else "screened",
            reason=reasons.get(one.member.case_id),
            slices=0 if one.fails else 1,
        )
        for one in cases
    ]
    batch = Batch(
        number=number,
        opened="2026-01-01",
        committed="2026-01-01",
        fingerprint={"model": "one"},
        predictions_sha256=sha256_file(str(run / "predictions.parquet")),
        screenings=tuple(screenings),
        changed=(),
    )
    (run / "_batch.json").write_bytes(batch.to_json())


def _slices_of(one: Made) -> CaseSlices:
    index = np.arange(one.first, one.first + 20)
    return CaseSlices(
        one.member.case_id, index, BRAIN * np.uint8(100), BRAIN, None, (1.0, 1.0, 1.0), "LPS", (1.0, 1.0, 1.0)
    )


def _predictions_of(cases: list[Made]) -> pd.DataFrame:
    """A row a case: "Yes" where there is a lesion."""
    rows = []
    for one in cases:
        says = "yes" if one.cells else "no"
        own = {"case_id": one.member.case_id, "slice_index": 67, "patient": one.member.patient_id, "verdict": says}
        row = {field.name: "" if pa.types.is_string(field.type) else 0 for field in PREDICTIONS}
        rows.append({**row, **own, "answer_parsed": True, "p_yes": one.p_yes, "label": None, "tumour_pixels": None})
    return pd.DataFrame(rows, columns=PREDICTIONS.names)


def _grids_of(one: Made) -> np.ndarray:
    grids = np.full((20, 1, 16, 16), -6, np.float16)
    for cells in one.cells:
        grids[65 - one.first : 70 - one.first, 0][:, *cells] = 6
    return grids

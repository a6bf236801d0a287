"""Slices and maps to the facts of cases: `cases.parquet`, `lesions.parquet`, `worklist.csv`, and what is measured."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import pyarrow as pa

from medad_core.config import EvaluateSettings
from medad_core.data.place import Place
from medad_core.errors import StoreError
from medad_core.facts.case import CaseFacts, case_facts
from medad_core.facts.lesions import BoolArray, Grid
from medad_core.facts.worklist import HEADS, NEAR_HALF, Entry, Screened, worklist, worklist_rows
from medad_core.media import write_csv
from medad_core.metrics import CaseComparison
from medad_core.run.run import Run
from medad_core.stages.rows import brains_of
from medad_core.store import join, read_table, write_text

CASES_FILE, LESIONS_FILE, WORKLIST_FILE = "cases.parquet", "lesions.parquet", "worklist.csv"
FACTS_FILES = (CASES_FILE, LESIONS_FILE, WORKLIST_FILE)


def thresholds_of(run: Run) -> dict[str, float]:
    """The threshold that the results of each case have, by case; none where there are no results yet.

    `medad evaluate` may have been given another one than the run's settings say.
    """
    try:
        rows = read_table(join(run.uri, CASES_FILE)).select(["case_id", "threshold"]).to_pylist()
    except StoreError:
        return {}
    return {row["case_id"]: row["threshold"] for row in rows}


def places_of(run: Run) -> dict[str, Place]:
    """Where the pictures of each case lie, as far as it was noted. Raises StoreError."""
    plan = run.stage("slices").plan()
    recorded = run.inputs.read_all([part.number for part in plan.parts], plan.sha256)
    return {case_id: place for _, part in recorded for case_id, place in part.places.items()}


def facts_of(
    slices: pa.Table,
    found: BoolArray,
    masks: BoolArray | None,
    place: Place | None,
    settings: EvaluateSettings,
    phantom: bool,
) -> CaseFacts:
    """The facts of one case from its rows of SLICES, its maps above the threshold and its masks, (N, H, W) each."""
    first = slices.select(["case_id", "slice_index", "spacing_mm"]).slice(0, 1).to_pylist()[0]
    grid = Grid(tuple(first["spacing_mm"]), first["slice_index"], place)
    limits = settings.map_threshold, settings.smallest_lesion_ml
    return case_facts(first["case_id"], found, masks, brains_of(slices), grid, *limits, phantom)


def entries_of(facts: Sequence[CaseFacts], predictions: pd.DataFrame, warned: Sequence[tuple[str, str]]) -> list[Entry]:
    """The worklist of cases with these facts and predictions."""
    screened = {str(case_id): screened_of(rows) for case_id, rows in predictions.groupby("case_id")}
    return worklist(facts, screened, warned)


def worklist_text(entries: Sequence[Entry]) -> str:
    """The content of `worklist.csv`."""
    return write_csv(HEADS, worklist_rows(entries))


def write_worklist(run: str, entries: Sequence[Entry]) -> None:
    """Write the worklist of the run in the folder `run`. Raises StoreError."""
    write_text(join(run, WORKLIST_FILE), worklist_text(entries))


def screened_of(rows: pd.DataFrame) -> Screened:
    """What the rows of predictions of one case say."""
    p_yes, scores = rows["p_yes"].dropna(), rows["anomaly_score"].dropna()
    best = scores.idxmax() if len(scores) else rows.index[len(rows) // 2]
    return Screened(
        patient=rows["patient"].iloc[0],
        slices=len(rows),
        highest_p_yes=float(p_yes.max()) if len(p_yes) else None,
        highest_score=float(scores.max()) if len(scores) else None,
        slices_yes=int((rows["verdict"] == "yes").sum()),
        unreadable=int((~rows["answer_parsed"].astype(bool)).sum()),
        near_half=int(p_yes.between(*NEAR_HALF).sum()),
        best_slice=int(rows.loc[best, "slice_index"]),
        unstable=int((rows["unstable"] == 1).sum()) if "unstable" in rows else 0,
    )


def comparison_of(facts: CaseFacts) -> CaseComparison | None:
    """Map and mask of a case side by side; None without mask."""
    true = facts.true
    if true is None:
        return None
    found = facts.found
    return CaseComparison(
        volume_ml=found.volume_ml,
        volume_ml_true=true.volume_ml,
        longest_mm=found.longest_mm,
        longest_mm_true=true.longest_mm,
        side=found.side,
        side_true=true.side,
        regions=None if facts.unnamed else found.regions,
        regions_true=None if facts.unnamed else true.regions,
        lesions=len(true.placed),
        found=true.matched,
        false=len(found.placed) - found.matched,
    )

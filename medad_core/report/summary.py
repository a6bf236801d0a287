"""What a run was, and what it found in each case: the facts of the page beside the metrics.

One decision: a case is listed by what was computed over its slices. Nothing in it is a diagnosis or rounded away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from medad_core.facts.worklist import Entry
from medad_core.metrics import MetricRow


@dataclass(frozen=True)
class RunSummary:
    """Facts of one run.

    `created` is a readable date. `models` pairs role and name, `rejected` case and reason, `warned` case and warning,
    `versions` package and version. `phantom` marks a generated cohort, which the page says in its first lines.
    `caveats` are sentences a reader must see before any number.
    """

    cohort: str
    created: str
    phantom: bool
    models: tuple[tuple[str, str], ...]
    fingerprint: str
    map_threshold: float
    caveats: tuple[str, ...] = ()
    rejected: tuple[tuple[str, str], ...] = ()
    warned: tuple[tuple[str, str], ...] = ()
    versions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class CaseRow:
    """One case over its slices.

    `tumour_slices` is None where unlabelled. `location` is the commonest that the LLM named, in the picture;
    `location_anatomical` is the same place in the patient. `entry` is that of the worklist, None where there is none.
    """

    case_id: str
    split: str
    slices: int
    tumour_slices: int | None
    yes_slices: int
    highest_score: float | None
    highest_slice: int | None
    location: str | None
    location_anatomical: str | None
    entry: Entry | None = None


def case_rows(predictions: pd.DataFrame, entries: Sequence[Entry] = ()) -> list[CaseRow]:
    """One row a case, in the order of the worklist `entries`; without, those with the largest share of "Yes" first."""
    rows = [_case_row(str(case), frame) for case, frame in predictions.groupby("case_id", sort=True)]
    if entries:
        of_case = {row.case_id: row for row in rows}
        return [replace(of_case[entry.facts.case_id], entry=entry) for entry in entries]
    return sorted(rows, key=lambda row: (-row.yes_slices / row.slices, -(row.highest_score or 0), row.case_id))


def main_split(rows: Sequence[MetricRow]) -> str:
    """The split a reader should look at first: the held-out one where there is one."""
    return "test" if any(row.split == "test" and row.value is not None for row in rows) else "all"


def _case_row(case_id: str, frame: pd.DataFrame) -> CaseRow:
    labels = frame["label"].dropna()
    scores = frame["anomaly_score"].dropna()
    top = scores.idxmax() if len(scores) else None
    yes = frame[(frame["verdict"] == "yes") & frame["answer_parsed"].fillna(False).astype(bool)]
    location = _commonest(yes["location"])
    return CaseRow(
        case_id=case_id,
        split=str(frame["split"].iloc[0]),
        slices=len(frame),
        tumour_slices=int(labels.sum()) if len(labels) else None,
        yes_slices=len(yes),
        highest_score=None if top is None else float(scores.loc[top]),
        highest_slice=None if top is None else int(frame["slice_index"].loc[top]),
        location=location,
        location_anatomical=_commonest(yes.loc[yes["location"] == location, "location_anatomical"]),
    )


def _commonest(values: pd.Series) -> str | None:
    counts = values.dropna().value_counts()
    # Ties go to the first in the alphabet, so that a page is the same every time.
    return min(counts.index[counts == counts.max()]) if len(counts) else None

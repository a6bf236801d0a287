"""The worklist as the page has it: one row a case, and one for each case that was rejected.

One decision: numbers are those of `cases.parquet` and `predictions.parquet`, rounded once, here, and printed by the
page as they come; order, finding and doubts are those of `worklist.csv`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from medad_core.facts.worklist import FINDINGS
from medad_core.media import file_name, visible

REJECTED = "rejected"
_ML, _MM, _SCORE = 2, 0, 3  # digits, as in worklist.csv
Numbers = tuple[float | None, ...]


@dataclass(frozen=True)
class Strip:
    """The slices of a case from `first` on: score of the map, p(yes), expert's label; None where there is none."""

    first: int
    score: Numbers
    p_yes: Numbers
    label: tuple[int | None, ...]


@dataclass(frozen=True)
class PageRow:
    """One case. `file` is the name of its page without ending, None where it has no page.

    Of a rejected case nothing is known but the reason, which stands in `doubts`. `at_least` marks volume and length of
    a lesion that the range of slices cuts.
    """

    place: int
    case: str
    patient: str | None
    finding: str
    doubts: str
    file: str | None = None
    phantom: bool = False
    disagree: bool = False
    at_least: bool = False
    volume_ml: float | None = None
    longest_mm: float | None = None
    side: str | None = None
    regions: str | None = None
    expert_ml: float | None = None
    p_yes: float | None = None
    score: float | None = None
    yes: int | None = None
    slices: int | None = None
    look_at: int | None = None
    strip: Strip | None = None


def page_rows(
    entries: Sequence[Mapping[str, str]],
    cases: Mapping[str, Mapping[str, Any]],
    predictions: pd.DataFrame,
    phantoms: frozenset[str],
    rejected: Sequence[tuple[str, str, str]],
    pages: AbstractSet[str],
) -> list[PageRow]:
    """The rows in the order of the worklist, then the rejected ones.

    `entries` are the rows of `worklist.csv`, `cases` those of CASES by case, `predictions` has the columns of
    PREDICTIONS, `rejected` has case, stage and reason. `pages` are the cases that have a page, by `file_name`.
    """
    of_case = dict(iter(predictions.groupby("case_id", sort=False)))
    rows = []
    for place, entry in enumerate(entries, 1):
        case_id = entry["case_id"]
        file = file_name(case_id) if file_name(case_id) in pages else None
        rows.append(_row(place, entry, cases[case_id], of_case[case_id], case_id in phantoms, file))
    return rows + [
        PageRow(place, visible(case_id), None, REJECTED, visible(f"{stage}: {reason}"))
        for place, (case_id, stage, reason) in enumerate(rejected, len(rows) + 1)
    ]


def row_values(row: PageRow) -> dict[str, Any]:
    """A row for the script of the page, without what is not known of it."""
    return {name: value for name, value in asdict(row).items() if value is not None}


def _row(
    place: int,
    entry: Mapping[str, str],
    case: Mapping[str, Any],
    frame: pd.DataFrame,
    is_phantom: bool,
    file: str | None,
) -> PageRow:
    has_lesions = case["lesions"] > 0
    return PageRow(
        place=place,
        case=visible(entry["case_id"]),
        patient=visible(entry["patient"]),
        finding=entry["finding"],
        doubts=visible(entry["doubts"]),
        file=file,
        phantom=is_phantom,
        disagree=entry["finding"] in FINDINGS[1:3],
        at_least=case["is_cut"],
        volume_ml=round(case["volume_ml"], _ML),
        longest_mm=round(case["longest_mm"], _MM) if has_lesions else None,
        side=case["side"],
        regions=", ".join(case["regions"] or ()) or None,
        expert_ml=None if case["volume_ml_true"] is None else round(case["volume_ml_true"], _ML),
        p_yes=_rounded(frame["p_yes"].max()),
        score=_rounded(frame["anomaly_score"].max()),
        yes=int((frame["verdict"] == "yes").sum()),
        slices=len(frame),
        look_at=int(entry["look_at"]),
        strip=_strip(frame.sort_values("slice_index")),
    )


def _strip(frame: pd.DataFrame) -> Strip:
    return Strip(
        first=int(frame["slice_index"].iloc[0]),
        score=tuple(map(_rounded, frame["anomaly_score"])),
        p_yes=tuple(map(_rounded, frame["p_yes"])),
        label=tuple(None if pd.isna(label) else int(label) for label in frame["label"]),
    )


def _rounded(value: float) -> float | None:
    return None if pd.isna(value) else round(float(value), _SCORE)

"""Rows of the follow-up: `followup.parquet` and, for people, `followup.csv`.

One decision: a row says what was compared, and if it is not everything, why. Where the order of two examinations is not
known, there is no row with an earlier and a later one, because every sign in it would be a guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa

from medad_core.data.visits import Visit
from medad_core.facts.followup import LASTING, NEW, TOO_SMALL, VANISHED, Comparison, Pair
from medad_core.store import FOLLOWUP_LESIONS, FOLLOWUPS

ON_GRID, NUMBERS, NOTHING = "on the common grid", "numbers only", "nothing"
# The columns that say whose examinations they are and when, which may be known better later.
WHEN = ("patient", "phantom", "visit_earlier", "visit_later", "date_earlier", "date_later", "days", "ordered_by")
HEADS = (
    "patient",
    "earlier",
    "later",
    "when_earlier",
    "when_later",
    "days",
    "volume_ml_earlier",
    "volume_ml_later",
    "change_ml",
    "change_percent",
    "longest_change_mm",
    "lesions_earlier",
    "lesions_later",
    "new",
    "vanished",
    "merged",
    "split",
    "slices",
    "compared",
    "remarks",
)


@dataclass(frozen=True)
class FollowUp:
    """Two consecutive examinations of a patient, or why examinations of a patient are not compared.

    The columns of FOLLOWUPS. What was not compared is None; `compared` is one of ON_GRID, NUMBERS and NOTHING, and
    `reason` says why where it is not ON_GRID, or where only some slices are. With NUMBERS, volumes and diameters are
    those of `cases.parquet`; with ON_GRID those in the slices `first_slice` to `last_slice`.
    """

    patient: str
    compared: str
    reason: str | None
    phantom: bool
    earlier: str | None = None
    later: str | None = None
    visit_earlier: str | None = None
    visit_later: str | None = None
    date_earlier: str | None = None
    date_later: str | None = None
    days: int | None = None
    ordered_by: str | None = None
    threshold: float | None = None
    smallest_ml: float | None = None
    first_slice: int | None = None
    last_slice: int | None = None
    brain_dice: float | None = None
    volume_ml_earlier: float | None = None
    volume_ml_later: float | None = None
    change_ml: float | None = None
    change_percent: float | None = None
    longest_mm_earlier: float | None = None
    longest_mm_later: float | None = None
    longest_change_mm: float | None = None
    is_cut_earlier: bool | None = None
    is_cut_later: bool | None = None
    lesions_earlier: int | None = None
    lesions_later: int | None = None
    lasting: int | None = None
    new: int | None = None
    vanished: int | None = None
    too_small: int | None = None
    merged: int | None = None
    split: int | None = None
    batch_earlier: int | None = None
    batch_later: int | None = None


def when_columns(earlier: Visit, later: Visit, ordered_by: str) -> dict[str, Any]:
    """The columns that say which examinations a row compares, and when they were."""
    columns: dict[str, Any] = {"earlier": earlier.case_id, "later": later.case_id, "ordered_by": ordered_by}
    for name, visit in (("earlier", earlier), ("later", later)):
        columns[f"visit_{name}"] = visit.name or None
        columns[f"date_{name}"] = None if visit.day is None else visit.day.isoformat()
    if earlier.day is not None and later.day is not None:
        columns["days"] = (later.day - earlier.day).days
    return columns


def number_columns(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Volumes, diameters and numbers of lesions of two rows of CASES, and their changes."""
    columns: dict[str, Any] = {name: earlier[name] for name in ("threshold", "smallest_ml")}
    for suffix, row in (("earlier", earlier), ("later", later)):
        for name in ("volume_ml", "longest_mm", "is_cut", "lesions"):
            columns[f"{name}_{suffix}"] = row[name]
    return {**columns, **_changes(columns)}


def grid_columns(comparison: Comparison) -> dict[str, Any]:
    """What a comparison on the common grid says, in place of the numbers of whole cases."""
    columns: dict[str, Any] = {}
    for name, lesions in (("earlier", comparison.earlier), ("later", comparison.later)):
        columns[f"volume_ml_{name}"] = lesions.volume_ml
        columns[f"longest_mm_{name}"] = lesions.longest_mm
        columns[f"is_cut_{name}"] = lesions.is_cut
        columns[f"lesions_{name}"] = len(lesions.placed)
    return {
        **columns,
        **_changes(columns),
        "first_slice": comparison.slices.start,
        "last_slice": comparison.slices.stop - 1,
        "brain_dice": comparison.brain_dice,
        "lasting": comparison.count(LASTING),
        "new": comparison.count(NEW),
        "vanished": comparison.count(VANISHED),
        "too_small": comparison.count(TOO_SMALL),
        "merged": comparison.merged,
        "split": comparison.split,
    }


def _changes(columns: Mapping[str, Any]) -> dict[str, float | None]:
    earlier, later = columns["volume_ml_earlier"], columns["volume_ml_later"]
    longest = columns["longest_mm_earlier"], columns["longest_mm_later"]
    return {
        "change_ml": later - earlier,
        "change_percent": 100 * (later - earlier) / earlier if earlier else None,
        "longest_change_mm": None if None in longest else longest[1] - longest[0],
    }


def followup_table(rows: Iterable[FollowUp]) -> pa.Table:
    """The rows with the columns of FOLLOWUPS."""
    return pa.Table.from_pylist([vars(row) for row in rows], schema=FOLLOWUPS)


def followups_in(table: pa.Table) -> list[FollowUp]:
    """The rows of a table that `followup_table` made."""
    names = [field.name for field in fields(FollowUp)]
    return [FollowUp(**row) for row in table.select(names).to_pylist()]


def pair_rows(row: FollowUp, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Rows of FOLLOWUP_LESIONS: the lesions of a comparison."""
    whose = {"patient": row.patient, "earlier": row.earlier, "later": row.later}
    return [
        {
            **whose,
            "lesion_earlier": pair.earlier,
            "lesion_later": pair.later,
            "state": pair.state,
            "overlap_ml": pair.overlap_ml,
            "volume_ml_earlier": pair.volume_ml_earlier,
            "volume_ml_later": pair.volume_ml_later,
        }
        for pair in pairs
    ]


def pair_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The rows with the columns of FOLLOWUP_LESIONS."""
    return pa.Table.from_pylist(list(rows), schema=FOLLOWUP_LESIONS)


def csv_rows(rows: Iterable[FollowUp]) -> list[tuple]:
    """The rows of `followup.csv`, with the columns HEADS."""
    return [
        (
            row.patient,
            row.earlier,
            row.later,
            row.date_earlier or row.visit_earlier,
            row.date_later or row.visit_later,
            row.days,
            volume_text(row.volume_ml_earlier, row.is_cut_earlier),
            volume_text(row.volume_ml_later, row.is_cut_later),
            signed_text(row.change_ml, 2),
            signed_text(row.change_percent, 1),
            signed_text(row.longest_change_mm, 1),
            row.lesions_earlier,
            row.lesions_later,
            row.new,
            row.vanished,
            row.merged,
            row.split,
            None if row.first_slice is None else f"{row.first_slice} to {row.last_slice}",
            row.compared,
            remarks(row),
        )
        for row in rows
    ]


def remarks(row: FollowUp) -> str:
    """What a reader must know of a row beside its numbers."""
    notes = []
    if row.phantom:
        notes.append("generated phantom, not a patient")
    if row.reason:
        notes.append(row.reason)
    if row.is_cut_earlier or row.is_cut_later:
        notes.append("the slices end within a lesion, so this is the change of the part that they show")
    if row.too_small:
        notes.append(f"{row.too_small} lesions of one map are too small to count in the other")
    return "; ".join(notes)


def volume_text(volume_ml: float | None, is_cut: bool | None) -> str:
    """A volume in ml, as "≥ 1.20" where the slices end within a lesion; empty where there is none."""
    return "" if volume_ml is None else f"{'≥ ' if is_cut else ''}{volume_ml:.2f}"


def signed_text(value: float | None, digits: int) -> str:
    """A change with its sign; empty where there is none."""
    text = "" if value is None else f"{value:+.{digits}f}"
    return text if text.strip("+-0.") or not text else text[1:]  # no change has no sign

"""`table.csv`, one line a row and group, and `thresholds.csv`, one line a threshold.

One decision: an empty field is an undefined number; a failed row has its line, its status and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields

from medad_core.media import write_csv
from medad_core.reproduce.presentation.facts import GroupFacts, ThresholdNote
from medad_core.reproduce.presentation.sheet import BALANCED, DECIDED, MAIN, PIXEL, TEXT, Column, Sheet
from medad_core.reproduce.schema import Row

COLUMNS = (
    *(Column("", "image", metric) for metric in ("auroc", "ap", "ece")),
    *(Column("", "image", metric, MAIN) for metric, _ in DECIDED),
    *PIXEL,
    Column("", "patient", "auroc", "any"),
    *TEXT,
)
_PARTS = {
    "": "value",
    "_low": "ci_low",
    "_high": "ci_high",
    "_sd": "sd",
    "_difference": "difference",
    "_p": "p_bootstrap",
}


def wide_csv(sheet: Sheet) -> str:
    """The text of `table.csv`: who, status, sizes, then value, interval, standard deviation over seeds, difference to
    the proposed scheme and its p (paired bootstrap) of each headline number."""
    head = ["row", "title", "group", "status", "patients", "slices", "tumour_free", "seeds", "decision_rule"]
    numbers = [column.key + suffix for column in COLUMNS for suffix in _PARTS]
    return write_csv([*head, *numbers], [_record(sheet, group, row) for group in sheet.groups for row in sheet.rows])


def thresholds_csv(notes: Iterable[ThresholdNote]) -> str:
    """The text of `thresholds.csv`: every threshold in full, the rule that chose it, or why there is none."""
    return write_csv([field.name for field in fields(ThresholdNote)], [list(asdict(note).values()) for note in notes])


def _record(sheet: Sheet, group: GroupFacts, row: Row) -> list[object]:
    failed = sheet.failed(row.name)
    status = "ok" if failed is None else f"failed: {failed}"
    decided = sheet.find(group.name, row.name, BALANCED)
    seeds = max((line.seeds or 0 for line in sheet.of_row(group.name, row.name)), default=None)
    head = [
        row.name,
        row.title,
        group.name,
        status,
        group.tested_patients,
        group.slices,
        group.tumour_free,
        seeds,
        decided and decided.rule,
    ]
    return [*head, *_numbers(sheet, group.name, row.name)]


def _numbers(sheet: Sheet, group: str, row: str) -> Iterator[float | None]:
    for column in COLUMNS:
        line = sheet.find(group, row, column)
        for name in _PARTS.values():
            value = None if line is None else getattr(line, name)
            # More digits would only show the order of summation, which differs between machines.
            yield None if value is None else round(value, 6)

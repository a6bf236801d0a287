"""Why cells are empty, in few lines.

One decision: cells are named under their common reason, and rows under their common cells, since a reason such as "one class
only" empties dozens at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from medad_core.reproduce.presentation.facts import ThresholdNote
from medad_core.reproduce.presentation.sheet import HEADLINE, PIXEL, Line, Sheet
from medad_core.reproduce.presentation.words import escape, metric_words, rule_words
from medad_core.reproduce.schema import ROWS

Noted = tuple[str, str, str]  # reason, what is empty, row


def empty_cells(sheet: Sheet, group: str) -> list[str]:
    """One sentence a reason: failed rows, then numbers that are undefined, then those without an interval."""
    failed = [f"{row.title} failed: {escape(reason)}" for row in sheet.rows if (reason := sheet.failed(row.name))]
    alive = [row.name for row in sheet.rows if not sheet.failed(row.name)]
    lines = [line for row in alive for line in sheet.of_row(group, row)]
    empty = [(line.reason or "no reason given", _what(line, sheet, lines), line.row) for line in lines if line.value is None]
    noted = [(f"{line.reason} (the value stands)", _what(line, sheet, lines), line.row) for line in lines if line.value is not None and line.reason]
    return failed + _grouped([*empty, *_absent(sheet, group, alive), *noted], alive)


def undefined_thresholds(notes: Iterable[ThresholdNote]) -> list[str]:
    """One sentence a reason for thresholds that could not be chosen."""
    found = [(note.reason or "no reason given", f"{note.level} threshold of fold {note.fold}", note.row) for note in notes if note.value is None]
    return _grouped(found, [note.row for note in notes])


def _absent(sheet: Sheet, group: str, rows: Iterable[str]) -> Iterator[Noted]:
    """Cells of the tables of columns that have no line at all."""
    for row in rows:
        for column in (*HEADLINE, *PIXEL):
            if sheet.find(group, row, column) is None:
                yield "the row has no such number", f"{column.level} {metric_words(column.metric)}", row


def _what(line: Line, sheet: Sheet, lines: Iterable[Line]) -> str:
    """Name of a number; its rule and subset only where the same number stands under another."""
    name = f"{line.level} {metric_words(line.metric)}"
    if line.is_area:
        return f"{name}, {line.subset}"
    fates = {(other.value is None, other.reason) for other in lines if (other.row, other.level, other.metric, other.is_area) == (line.row, line.level, line.metric, False)}
    return f"{name} ({rule_words(line.rule, sheet.facts.patient_slices)})" if len(fates) > 1 and line.rule else name


def _grouped(found: Iterable[Noted], rows: Iterable[str]) -> list[str]:
    """One "reason: cells (rows), cells (rows)" a reason, in the order in which reasons turn up."""
    cells: dict[str, dict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    for reason, what, row in found:
        cells[reason][row][what] = None
    everyone = list(dict.fromkeys(rows))
    return [f"{escape(reason)}: {', '.join(_shared(by_row, everyone))}." for reason, by_row in cells.items()]


def _shared(by_row: dict[str, dict[str, None]], everyone: list[str]) -> Iterator[str]:
    together: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for row, cells in by_row.items():
        together[tuple(cells)].append(row)
    for cells, rows in together.items():
        yield f"{', '.join(cells)} ({_named(rows, everyone)})"


def _named(rows: list[str], everyone: list[str]) -> str:
    """Titles hold commas, so semicolons part them."""
    others = [row for row in everyone if row not in rows]
    if len(rows) <= max(1, len(others)):
        return "; ".join(ROWS[row].title for row in rows)
    return "all rows" + (f" but {'; '.join(ROWS[row].title for row in others)}" if others else "")

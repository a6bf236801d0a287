"""Why cells are empty, in few lines.

One decision: cells are named under their common reason, rows under their common cells and rules under their common
metrics, since a reason such as "one class only" empties a hundred at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from medad_core.media import markdown_text
from medad_core.reproduce.presentation.facts import ThresholdNote
from medad_core.reproduce.presentation.sheet import HEADLINE, PIXEL, Line, Sheet
from medad_core.reproduce.presentation.words import metric_words, rule_words
from medad_core.reproduce.schema import ROWS


@dataclass(frozen=True)
class _Empty:
    """One empty cell: its row, level and metric; `how` names the rule or lesion size where that matters."""

    reason: str
    row: str
    level: str
    metric: str
    how: str = ""


def empty_cells(sheet: Sheet, group: str) -> list[str]:
    """One sentence a reason: failed rows, then numbers that are undefined, then those without an interval."""
    failed: list[str] = []
    alive: list[str] = []
    for row in sheet.rows:
        reason = sheet.failed(row.name)
        if reason:
            failed.append(f"{row.title} failed: {markdown_text(reason)}")
        else:
            alive.append(row.name)
    undefined: list[_Empty] = []
    without_interval: list[_Empty] = []
    for line in (line for row in alive for line in sheet.of_row(group, row)):
        if line.value is None:
            undefined.append(_named(line, sheet, group, line.reason or "no reason given"))
        elif line.reason:
            without_interval.append(_named(line, sheet, group, f"{line.reason} (the value stands)"))
    return failed + _sentences([*undefined, *_absent(sheet, group, alive), *without_interval], alive)


def undefined_thresholds(notes: Iterable[ThresholdNote]) -> list[str]:
    """One sentence a reason for thresholds that could not be chosen."""
    empty = [
        _Empty(note.reason or "no reason given", note.row, note.level, "threshold", f", fold {note.fold}")
        for note in notes
        if note.value is None
    ]
    return _sentences(empty, [note.row for note in notes])


def _absent(sheet: Sheet, group: str, rows: Iterable[str]) -> Iterator[_Empty]:
    """Cells of the tables of columns that have no line at all."""
    for row in rows:
        for column in (*HEADLINE, *PIXEL):
            if sheet.find(group, row, column) is None:
                yield _Empty("the row has no such number", row, column.level, metric_words(column.metric))


def _named(line: Line, sheet: Sheet, group: str, reason: str) -> _Empty:
    """With its rule only where another rule gives the same number another fate."""
    same = [
        other
        for other in sheet.of_row(group, line.row)
        if (other.level, other.metric, other.is_area) == (line.level, line.metric, line.is_area)
    ]
    differ = len({(other.value is None, other.reason) for other in same}) > 1
    how = ""
    if line.is_area:
        how = f" for {line.subset}"
    elif differ and line.rule:
        how = f" by {rule_words(line.rule, sheet.facts.patient_slices)}"
    return _Empty(reason, line.row, line.level, metric_words(line.metric), how)


def _sentences(empty: Iterable[_Empty], rows: Iterable[str]) -> list[str]:
    """One "reason: cells (rows); cells (rows)" a reason, in the order in which reasons turn up."""
    by_reason: dict[str, dict[str, list[_Empty]]] = defaultdict(lambda: defaultdict(list))
    for cell in empty:
        by_reason[cell.reason][cell.row].append(cell)
    everyone = list(dict.fromkeys(rows))
    return [f"{markdown_text(reason)}: {'; '.join(_shared(by_row, everyone))}." for reason, by_row in by_reason.items()]


def _shared(by_row: dict[str, list[_Empty]], everyone: list[str]) -> Iterator[str]:
    together: dict[str, list[str]] = defaultdict(list)
    for row, cells in by_row.items():
        together[_cells(cells)].append(row)
    for cells, rows in together.items():
        yield f"{cells} ({_titles(rows, everyone)})"


def _cells(cells: Iterable[_Empty]) -> str:
    """As in: accuracy, F1 at image level by Youden / by best F1, Dice at pixel level."""
    metrics: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for cell in cells:
        metrics[cell.level, cell.how][cell.metric] = None
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (level, how), names in metrics.items():
        places[level, ", ".join(names)].append(how)
    return ", ".join(f"{names} at {level} level{' /'.join(hows)}" for (level, names), hows in places.items())


def _titles(rows: list[str], everyone: list[str]) -> str:
    """Titles hold commas, so semicolons part them."""
    others = [row for row in everyone if row not in rows]
    if len(rows) <= max(1, len(others)):
        return "; ".join(ROWS[row].title for row in rows)
    return "all rows" + (f" but {'; '.join(ROWS[row].title for row in others)}" if others else "")

"""The tables of `table.md`, one function each.

One decision: every table has every row, and a failed row says so in its first cell, so that none is missed by reading
one table alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from medad_core.media import markdown_text
from medad_core.metrics.printed import DASH, markdown_table, value_text
from medad_core.reproduce.presentation.empty import undefined_thresholds
from medad_core.reproduce.presentation.facts import ThresholdNote
from medad_core.reproduce.presentation.sheet import DECIDED, HEADLINE, MAIN, PIXEL, TEXT, Column, Line, Sheet
from medad_core.reproduce.presentation.words import (
    KINDS,
    RULES,
    bracketed,
    bullets,
    mean,
    p_value,
    paper_numbers,
    rule_words,
    signed,
    small,
)
from medad_core.reproduce.schema import PHANTOMS, PROPOSED, Row

Cells = Callable[[Row], list[list[str]]]  # the lines of one row of the table, without its title

_NO_NUMBERS = "The proposed scheme has no numbers to compare with."
_HOW_COMPARED = (
    "p: two-sided, of the paired bootstrap over patients, not corrected for the number of comparisons. "
    "DeLong's test takes slices for independent, which those of one patient are not: trust the bootstrap."
)
_JOINED = ("any", "k_of_n", "mean")  # how the slices of a patient become one decision
_OF_PATIENTS = (("auroc", "AUROC"), *DECIDED[:4])


def main_table(sheet: Sheet, group: str) -> str:
    """The headline columns, rows by kind, beside what the paper printed."""

    def cells(row: Row) -> list[list[str]]:
        seeds = next((str(line.seeds) for line in sheet.of_row(group, row.name)), DASH)
        return [[*(_best_marked(sheet, group, row, column) for column in HEADLINE), seeds]]

    header = ["row", *(column.title for column in HEADLINE), "seeds"]
    lines: list[list[str]] = []
    for kind, title in KINDS.items():
        rows = [row for row in sheet.rows if row.kind == kind]
        if rows:
            lines += [[f"*{title}*"], *_lines(sheet, rows, cells)]
    if group != PHANTOMS:  # the paper measured no phantoms
        papers = {row.title: paper_numbers(row.name) for row in sheet.rows}
        empty = [""] * len(header)
        lines = [[*line, *empty[len(line) :], papers.get(line[0], "")] for line in lines]
        header.append("paper AUC / acc")
    return _grid(header, lines) + "\n\nBest value of a column in bold."


def differences_table(sheet: Sheet, group: str) -> str:
    """Differences to the proposed scheme, with intervals and p-values."""
    if PROPOSED not in sheet.facts.failed or sheet.failed(PROPOSED):
        return _NO_NUMBERS
    dice = [Column(f"pixel {column.title}", column.level, column.metric, column.rule) for column in PIXEL[2:4]]
    columns = [*HEADLINE, *dice]

    def cells(row: Row) -> list[list[str]]:
        lines = [sheet.find(group, row.name, column) for column in columns]
        return [[p_value(lines[0] and lines[0].p_delong), *map(_difference, lines)]]

    rows = [row for row in sheet.rows if row.name != PROPOSED]
    header = ["row", "p DeLong, image AUROC", *(column.title for column in columns)]
    return f"{_grid(header, _lines(sheet, rows, cells))}\n\n{_HOW_COMPARED}"


def decisions_table(sheet: Sheet, group: str) -> str:
    """What each threshold rule comes to, slice by slice."""

    def cells(row: Row) -> list[list[str]]:
        lines = sheet.of_row(group, row.name)
        rules = [line.rule for line in lines if (line.level, line.metric) == ("image", "balanced_accuracy")]
        return [[rule_words(rule, 0), *of_rule(row, rule)] for rule in dict.fromkeys(rules)]

    def of_rule(row: Row, rule: str) -> list[str]:
        columns = [Column(title, "image", metric, rule) for metric, title in DECIDED]
        return [_value(sheet.find(group, row.name, column)) for column in columns]

    header = ["row", "rule", *(title for _, title in DECIDED)]
    return _grid(header, _lines(sheet, sheet.rows, cells), left=2)


def pixels_table(sheet: Sheet, group: str) -> str:
    """What the maps are worth."""
    return _columns(sheet, group, PIXEL, sheet.rows)


def patients_table(sheet: Sheet, group: str) -> str:
    """Patients by each way of joining their slices."""

    def cells(row: Row) -> list[list[str]]:
        joined = {how: of_patients(row, how) for how in _JOINED}
        return [
            [rule_words(how, sheet.facts.patient_slices), *map(_value, lines)]
            for how, lines in joined.items()
            if any(lines)
        ]

    def of_patients(row: Row, how: str) -> list[Line | None]:
        rules = [how if metric == "auroc" else f"{how}/{MAIN}" for metric, _ in _OF_PATIENTS]
        columns = [Column("", "patient", metric, rule) for (metric, _), rule in zip(_OF_PATIENTS, rules, strict=True)]
        return [sheet.find(group, row.name, column) for column in columns]

    header = ["row", "joined by", *(title for _, title in _OF_PATIENTS)]
    table = _grid(header, _lines(sheet, sheet.rows, cells), left=2)
    return f"{table}\n\nMain rule; the others are in `table.parquet`."


def text_table(sheet: Sheet, group: str) -> str:
    """What the sentences are worth, of the rows that speak."""
    speaking = [
        row
        for row in sheet.rows
        if sheet.failed(row.name) or any(line.level == "text" for line in sheet.of_row(group, row.name))
    ]
    return _columns(sheet, group, TEXT, speaking, counted=True) if speaking else "No row speaks."


def lesions_table(sheet: Sheet, group: str) -> str:
    """Sensitivity by the area of the lesion in the slice."""
    counts: dict[str, int | None] = {}
    for line in sheet.lines:
        if line.group == group and line.is_area:
            counts.setdefault(line.subset, line.n)
    if not counts:
        return "No lesion sizes."

    def cells(row: Row) -> list[list[str]]:
        columns = [Column("", "image", "sensitivity", MAIN, subset) for subset in counts]
        return [[_value(sheet.find(group, row.name, column)) for column in columns]]

    header = ["row", *(f"{subset.removeprefix('area ')}, n = {count:,}" for subset, count in counts.items())]
    return f"{_grid(header, _lines(sheet, sheet.rows, cells))}\n\nTumour area of the slice; main rule."


def thresholds_table(sheet: Sheet, group: str) -> str:
    """Thresholds of every fold, and why some could not be chosen."""
    notes = [note for note in sheet.facts.thresholds if note.group == group]
    folds = sorted({note.fold for note in notes})

    def cells(row: Row) -> list[list[str]]:
        own = [note for note in notes if note.row == row.name]
        kinds = dict.fromkeys((note.level, note.rule) for note in own)
        return [of_kind(own, level, rule) for level, rule in kinds]

    def of_kind(own: Sequence[ThresholdNote], level: str, rule: str) -> list[str]:
        same = [note for note in own if (note.level, note.rule) == (level, rule)]
        by_fold = [_of_fold([note for note in same if note.fold == fold]) for fold in folds]
        return [level, RULES.get(rule, rule), *by_fold]

    header = ["row", "level", "rule", *(f"fold {fold}" for fold in folds)]
    table = _grid(header, _lines(sheet, sheet.rows, cells), left=3)
    parts = [table, "Seeds of a fold in order; in full in `thresholds.csv`."]
    undefined = undefined_thresholds(notes)
    if undefined:
        parts.append(bullets(undefined))
    return "\n\n".join(parts)


def _columns(sheet: Sheet, group: str, columns: Sequence[Column], rows: Sequence[Row], counted: bool = False) -> str:
    """A table of plain columns; `counted` says the n of each number."""

    def size(row: Row, column: Column) -> str:
        line = sheet.find(group, row.name, column)
        return f", n = {line.n:,}" if counted and line and line.value is not None and line.n else ""

    def cells(row: Row) -> list[list[str]]:
        return [[_best_marked(sheet, group, row, column) + size(row, column) for column in columns]]

    return _grid(["row", *(column.title for column in columns)], _lines(sheet, rows, cells))


def _best_marked(sheet: Sheet, group: str, row: Row, column: Column) -> str:
    line = sheet.find(group, row.name, column)
    text = _value(line)
    if line is None or line.value is None or round(line.value, 3) != sheet.best(group, column):
        return text
    value = value_text(line.value)
    return text.replace(value, f"**{value}**", 1)


def _value(line: Line | None) -> str:
    if line is None or line.value is None:
        return DASH
    return mean(line) + bracketed(line.ci_low, line.ci_high)


def _difference(line: Line | None) -> str:
    if line is None or line.difference is None:
        return DASH
    text = signed(line.difference) + bracketed(line.difference_low, line.difference_high, signed)
    return text if line.p_bootstrap is None else f"{text}, p {p_value(line.p_bootstrap)}"


def _of_fold(notes: Sequence[ThresholdNote]) -> str:
    return " · ".join(small(note.value) for note in sorted(notes, key=lambda note: note.seed)) or DASH


def _lines(sheet: Sheet, rows: Iterable[Row], cells: Cells) -> list[list[str]]:
    """Lines with the row's title first; a failed row says so in its first cell."""
    lines = []
    for row in rows:
        reason = sheet.failed(row.name)
        of_row = [[f"failed: {markdown_text(reason)}"]] if reason else cells(row)
        lines += [[row.title, *line] for line in of_row]
    return lines


def _grid(header: Sequence[str], lines: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table whose first `left` columns are words and whose others are numbers."""
    return markdown_table(header, lines, "l" * left + "r" * (len(header) - left))

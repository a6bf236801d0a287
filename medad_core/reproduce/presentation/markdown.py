"""`table.md`: the table for people.

One decision: what a reader could misread is said beside the numbers, not in another file: where a baseline is better,
which rows failed, and why a cell is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from medad_core.reproduce.presentation.claims import claims
from medad_core.reproduce.presentation.empty import empty_cells, undefined_thresholds
from medad_core.reproduce.presentation.facts import GroupFacts, ThresholdNote
from medad_core.reproduce.presentation.sheet import DECIDED, HEADLINE, MAIN, PIXEL, TEXT, Column, Line, Sheet
from medad_core.reproduce.presentation.words import (
    DASH,
    GENERATED,
    KINDS,
    RULES,
    between,
    escape,
    heading,
    mean,
    number,
    p_value,
    paper_numbers,
    rule_words,
    signed,
    small,
)
from medad_core.reproduce.schema import PHANTOMS, PROPOSED, Row

Cells = Callable[[Row], list[list[str]]]  # the lines of one row of the table, without its title


def render_markdown(sheet: Sheet) -> str:
    """The text of `table.md`: what was measured, then one section a group, then the settings."""
    parts = ["# The paper's table, measured again", _bullets(_facts(sheet))]
    for group in sheet.groups:
        parts += [f"## {heading(group.name)}", *_group(sheet, group)]
    parts += ["## Rows", _bullets(f"{row.title}: {row.what}." for row in sheet.rows)]
    if sheet.facts.settings:
        parts += ["## Settings", f"````yaml\n{sheet.facts.settings.strip()}\n````"]
    return "\n\n".join(parts) + "\n"


def _facts(sheet: Sheet) -> list[str]:
    facts, patients = sheet.facts, any(group.name != PHANTOMS for group in sheet.groups)
    return [
        f"Data: {escape(facts.data)}.",
        *(f"{heading(group.name)}: {_counted(group)}" for group in sheet.groups),
        f"Split by patient, the same for every row: {'one split' if facts.folds == 1 else f'{facts.folds} folds, each patient tested once'}. Seeds: {', '.join(map(str, facts.seeds))}.",
        "A value is the mean over seeds, ± its standard deviation where a row has several; in brackets the 95 % interval of a bootstrap over patients, all slices of a patient together.",
        f"Thresholds are chosen on validation patients alone. Main decisions: the LLM's own answer where a row speaks, else the threshold rule “{RULES[facts.rule]}”.",
        *(
            [
                "The paper's own numbers are from other patients and another split: not comparable, shown for orientation."
            ]
            if patients
            else []
        ),
        *map(escape, facts.notes),
    ]


def _counted(group: GroupFacts) -> str:
    noun = "phantoms" if group.name == PHANTOMS else "patients"
    share = (
        f"; always answering the commoner class has an accuracy of {number(group.majority_accuracy)}"
        if group.slices
        else ""
    )
    dealt = "; ".join(" / ".join(map(str, fold)) for fold in group.dealt)
    tested = f"{group.patients:,} {noun}, {group.tested_patients:,} of them tested on {group.slices:,} slices, {group.tumour_free:,} tumour-free{share}."
    return tested + (f" Train / validation / test {noun} a fold: {dealt}." if dealt else "")


def _group(sheet: Sheet, group: GroupFacts) -> list[str]:
    name = group.name
    parts = [GENERATED] if name == PHANTOMS else []
    parts += [_main(sheet, name), _bullets(claims(sheet, name))]
    for title, text in (
        ("Differences to the proposed scheme", _differences(sheet, name)),
        ("Decisions by threshold rule", _decisions(sheet, name)),
        ("Pixel level", _columns(sheet, name, PIXEL, sheet.rows)),
        ("Patient level" if name != PHANTOMS else "Phantom level", _patients(sheet, name)),
        ("Answers of the language model", _text(sheet, name)),
        ("Sensitivity by lesion size", _lesions(sheet, name)),
        ("Thresholds", _thresholds(sheet, name)),
        ("Empty cells", _bullets(empty_cells(sheet, name)) or "None."),
    ):
        parts += [f"### {title}", text]
    return parts


def _main(sheet: Sheet, group: str) -> str:
    def cells(row: Row) -> list[list[str]]:
        seeds = next((str(line.seeds) for line in sheet.of_row(group, row.name)), DASH)
        return [[*(_best_marked(sheet, group, row, column) for column in HEADLINE), seeds]]

    header, lines = ["row", *(column.title for column in HEADLINE), "seeds"], []
    for kind, title in KINDS.items():
        rows = [row for row in sheet.rows if row.kind == kind]
        lines += [[f"*{title}*"], *_lines(sheet, rows, cells)] if rows else []
    if group != PHANTOMS:  # the paper measured no phantoms
        papers = {row.title: paper_numbers(row.name) for row in sheet.rows}
        lines = [[*line, *[""] * (len(header) - len(line)), papers.get(line[0], "")] for line in lines]
        header.append("paper AUC / acc")
    return _grid(header, lines) + "\n\nBest value of a column in bold."


def _differences(sheet: Sheet, group: str) -> str:
    if PROPOSED not in sheet.facts.failed or sheet.failed(PROPOSED):
        return "The proposed scheme has no numbers to compare with."

    def cells(row: Row) -> list[list[str]]:
        lines = [sheet.find(group, row.name, column) for column in columns]
        return [[p_value(lines[0] and lines[0].p_delong), *map(_difference, lines)]]

    columns = (
        *HEADLINE,
        *(Column(f"pixel {column.title}", column.level, column.metric, column.rule) for column in PIXEL[2:4]),
    )
    rows = [row for row in sheet.rows if row.name != PROPOSED]
    how = "p: two-sided, of the paired bootstrap over patients, not corrected for the number of comparisons. DeLong's test takes slices for independent, which those of one patient are not: trust the bootstrap."
    return (
        _grid(["row", "p DeLong, image AUROC", *(column.title for column in columns)], _lines(sheet, rows, cells))
        + f"\n\n{how}"
    )


def _difference(line: Line | None) -> str:
    if line is None or line.difference is None:
        return DASH
    spread = between(line.difference_low, line.difference_high, signed)
    return (
        signed(line.difference)
        + (f" ({spread})" if spread else "")
        + (f", p {p_value(line.p_bootstrap)}" if line.p_bootstrap is not None else "")
    )


def _decisions(sheet: Sheet, group: str) -> str:
    def cells(row: Row) -> list[list[str]]:
        rules = dict.fromkeys(
            line.rule
            for line in sheet.of_row(group, row.name)
            if (line.level, line.metric) == ("image", "balanced_accuracy")
        )
        return [
            [
                rule_words(rule, 0),
                *(
                    _value(sheet.find(group, row.name, Column(title, "image", metric, rule)))
                    for metric, title in DECIDED
                ),
            ]
            for rule in rules
        ]

    return _grid(["row", "rule", *(title for _, title in DECIDED)], _lines(sheet, sheet.rows, cells), left=2)


def _patients(sheet: Sheet, group: str) -> str:
    def cells(row: Row) -> list[list[str]]:
        lines = [
            [
                sheet.find(
                    group, row.name, Column("", "patient", metric, how if metric == "auroc" else f"{how}/{MAIN}")
                )
                for metric, _ in shown
            ]
            for how in ("any", "k_of_n", "mean")
        ]
        return [
            [rule_words(how, sheet.facts.patient_slices), *map(_value, found)]
            for how, found in zip(("any", "k_of_n", "mean"), lines, strict=True)
            if any(found)
        ]

    shown = (("auroc", "AUROC"), *DECIDED[:4])
    return (
        _grid(["row", "joined by", *(title for _, title in shown)], _lines(sheet, sheet.rows, cells), left=2)
        + "\n\nMain rule; the others are in `table.parquet`."
    )


def _text(sheet: Sheet, group: str) -> str:
    speaking = [
        row
        for row in sheet.rows
        if sheet.failed(row.name) or any(line.level == "text" for line in sheet.of_row(group, row.name))
    ]
    return _columns(sheet, group, TEXT, speaking, counted=True) if speaking else "No row speaks."


def _lesions(sheet: Sheet, group: str) -> str:
    counts = {line.subset: line.n for line in reversed(sheet.lines) if line.group == group and line.is_area}
    bins = list(dict.fromkeys(line.subset for line in sheet.lines if line.group == group and line.is_area))
    if not bins:
        return "No lesion sizes."

    def cells(row: Row) -> list[list[str]]:
        return [
            [_value(sheet.find(group, row.name, Column("", "image", "sensitivity", MAIN, subset))) for subset in bins]
        ]

    return (
        _grid(
            ["row", *(f"{subset.removeprefix('area ')}, n = {counts[subset]:,}" for subset in bins)],
            _lines(sheet, sheet.rows, cells),
        )
        + "\n\nTumour area of the slice; main rule."
    )


def _thresholds(sheet: Sheet, group: str) -> str:
    def cells(row: Row) -> list[list[str]]:
        mine = [note for note in notes if note.row == row.name]
        kinds = dict.fromkeys((note.level, note.rule) for note in mine)
        return [
            [
                level,
                RULES.get(rule, rule),
                *(
                    _of_fold([note for note in mine if (note.level, note.rule, note.fold) == (level, rule, fold)])
                    for fold in folds
                ),
            ]
            for level, rule in kinds
        ]

    notes = [note for note in sheet.facts.thresholds if note.group == group]
    folds = sorted({note.fold for note in notes})
    table = _grid(
        ["row", "level", "rule", *(f"fold {fold}" for fold in folds)], _lines(sheet, sheet.rows, cells), left=3
    )
    return "\n\n".join(
        filter(
            None,
            [table, "Seeds of a fold in order; in full in `thresholds.csv`.", _bullets(undefined_thresholds(notes))],
        )
    )


def _of_fold(notes: Sequence[ThresholdNote]) -> str:
    return " · ".join(small(note.value) for note in sorted(notes, key=lambda note: note.seed)) or DASH


def _columns(sheet: Sheet, group: str, columns: Sequence[Column], rows: Sequence[Row], counted: bool = False) -> str:
    """A table of plain columns; `counted` says the n of each number."""

    def cells(row: Row) -> list[list[str]]:
        lines = [sheet.find(group, row.name, column) for column in columns]
        sizes = [
            f", n = {line.n:,}" if counted and line and line.value is not None and line.n else "" for line in lines
        ]
        return [[_best_marked(sheet, group, row, column) + size for column, size in zip(columns, sizes, strict=True)]]

    return _grid(["row", *(column.title for column in columns)], _lines(sheet, rows, cells))


def _best_marked(sheet: Sheet, group: str, row: Row, column: Column) -> str:
    line = sheet.find(group, row.name, column)
    text = _value(line)
    if line is None or line.value is None or round(line.value, 3) != sheet.best(group, column):
        return text
    return text.replace(number(line.value), f"**{number(line.value)}**", 1)


def _value(line: Line | None) -> str:
    if line is None or line.value is None:
        return DASH
    spread = between(line.ci_low, line.ci_high)
    return mean(line) + (f" ({spread})" if spread else "")


def _lines(sheet: Sheet, rows: Iterable[Row], cells: Cells) -> list[list[str]]:
    """Lines with the row's title first; a failed row says so in its first cell, in every table."""
    found = []
    for row in rows:
        reason = sheet.failed(row.name)
        found += [[row.title, *line] for line in ([[f"failed: {escape(reason)}"]] if reason else cells(row))]
    return found


def _grid(header: Sequence[str], lines: Iterable[Sequence[str]], left: int = 1) -> str:
    rows = [[*line, *[""] * (len(header) - len(line))] for line in lines]
    return "\n".join(
        f"| {' | '.join(row)} |" for row in [header, ["---"] * left + ["---:"] * (len(header) - left), *rows]
    )


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)

"""`table.md`: the table for people.

One decision: what a reader could misread is said beside the numbers, not in another file: where a baseline is better,
which rows failed, and why a cell is empty.
"""

from __future__ import annotations

from collections.abc import Iterable

from medad_core.media import markdown_text
from medad_core.metrics.printed import value_text
from medad_core.reproduce.presentation.claims import claims
from medad_core.reproduce.presentation.empty import empty_cells
from medad_core.reproduce.presentation.facts import Facts, GroupFacts
from medad_core.reproduce.presentation.sections import (
    decisions_table,
    differences_table,
    lesions_table,
    main_table,
    patients_table,
    pixels_table,
    text_table,
    thresholds_table,
)
from medad_core.reproduce.presentation.sheet import Sheet
from medad_core.reproduce.presentation.words import GENERATED, RULES, bullets, heading
from medad_core.reproduce.schema import PHANTOMS


def render_markdown(sheet: Sheet) -> str:
    """The text of `table.md`: what was measured, then one section a group, then the settings."""
    parts = ["# The paper's table, measured again", bullets(_facts(sheet))]
    for group in sheet.groups:
        parts += [f"## {heading(group.name)}", *_group(sheet, group)]
    parts += ["## Rows", bullets(f"{row.title}: {row.what}; supervision: {row.supervision}." for row in sheet.rows)]
    if sheet.facts.settings:
        parts += ["## Settings", f"````yaml\n{sheet.facts.settings.strip()}\n````"]
    return "\n\n".join(parts) + "\n"


def _facts(sheet: Sheet) -> Iterable[str]:
    facts = sheet.facts
    yield f"Data: {markdown_text(facts.data)}."
    for group in sheet.groups:
        yield f"{heading(group.name)}: {_counted(group)}"
    yield _split(facts)
    yield (
        "A value is the mean over seeds, ± its standard deviation where a row has several; "
        "in brackets the 95 % interval of a bootstrap over patients, all slices of a patient together."
    )
    yield (
        "Thresholds are chosen on validation patients alone. Main decisions: the LLM's own answer where a row speaks, "
        f"else the threshold rule “{RULES[facts.rule]}”."
    )
    if any(group.name != PHANTOMS for group in sheet.groups):
        yield (
            "The paper's own numbers are from other patients and another split: not comparable, shown for orientation."
        )
    yield from map(markdown_text, facts.notes)


def _split(facts: Facts) -> str:
    how = "one split" if facts.folds == 1 else f"{facts.folds} folds, each patient tested once"
    return f"Split by patient, the same for every row: {how}. Seeds: {', '.join(map(str, facts.seeds))}."


def _counted(group: GroupFacts) -> str:
    noun = "phantoms" if group.name == PHANTOMS else "patients"
    text = (
        f"{group.patients:,} {noun}, {group.tested_patients:,} of them tested on {group.slices:,} slices, "
        f"{group.tumour_free:,} tumour-free"
    )
    if group.slices:
        accuracy = value_text(group.majority_accuracy)
        text += f"; always answering the commoner class has an accuracy of {accuracy}"
    text += "."
    if group.dealt:
        dealt = "; ".join(" / ".join(map(str, fold)) for fold in group.dealt)
        text += f" Train / validation / test {noun} a fold: {dealt}."
    return text


def _group(sheet: Sheet, group: GroupFacts) -> list[str]:
    name = group.name
    sections = {
        "Differences to the proposed scheme": differences_table(sheet, name),
        "Decisions by threshold rule": decisions_table(sheet, name),
        "Pixel level": pixels_table(sheet, name),
        "Phantom level" if name == PHANTOMS else "Patient level": patients_table(sheet, name),
        "Answers of the language model": text_table(sheet, name),
        "Sensitivity by lesion size": lesions_table(sheet, name),
        "Thresholds": thresholds_table(sheet, name),
        "Empty cells": bullets(empty_cells(sheet, name)) or "None.",
    }
    parts = [GENERATED] if name == PHANTOMS else []
    parts += [main_table(sheet, name), bullets(claims(sheet, name))]
    for title, text in sections.items():
        parts += [f"### {title}", text]
    return parts

"""The section of a report with the language model's own words, and what map, facts and mask say of the same thing.

One decision: an answer stands in quotation marks in a column of its own, as it was spoken. How it is read and what it
is compared with stand beside it, so that a reader can check every mark.
"""

from __future__ import annotations

from medad_core.report.blocks import Block, Cell, Section, Table, Text
from medad_core.report.case import NEIGHBOUR, SAME, SHOWN, CaseReport, KeySlice, Statement
from medad_core.report.words import Words


def spoken_section(report: CaseReport, words: Words) -> Section:
    """The statements of every key slice."""
    blocks: list[Block] = [Text(words("spoken.intro"), "small")]
    blocks += [_table(one, report.true is not None, words) for one in report.key_slices[:SHOWN]]
    if left_out := len(report.key_slices[SHOWN:]):
        blocks.append(Text(words.counted("spoken.not_shown", left_out), "small"))
    blocks.append(Text(words("spoken.explained"), "small"))
    if report.further_questions:
        setting = ",".join((*report.questions, *report.further_questions))
        subjects = words.listed(words.known("subjects", name) for name in report.further_questions)
        blocks.append(Text(words("spoken.further", questions=subjects, setting=setting), "small"))
    return Section("spoken", words("spoken.title"), tuple(blocks))


def _table(one: KeySlice, labelled: bool, words: Words) -> Table:
    names = ("asked", "answer", "read_as", "of_map", "of_facts", *(("of_mask",) if labelled else ()), "agreement")
    widths = (19, 24, 14, 13, 13, *((13,) if labelled else ()), 13)
    rows = tuple(_row(statement, labelled, words) for statement in one.statements)
    title = words("spoken.slice", slice=one.slice_index)
    return Table(title, tuple(words(f"spoken.{name}") for name in names), rows, widths)


def _row(statement: Statement, labelled: bool, words: Words) -> tuple[Cell, ...]:
    of_source = {one.source: words.value(statement.subject, one.value) for one in statement.compared}
    none = words("none")
    answer = Cell(statement.answer, spoken=True) if statement.answer else Cell(words("spoken.nothing"))
    cells = [
        Cell(statement.asked),
        answer,
        Cell(_reading(statement, words)),
        Cell(of_source.get("map", none)),
        Cell(of_source.get("facts", none)),
    ]
    if labelled:
        masked = statement.with_mask
        mark = "" if masked is None else "same" if masked.match == SAME else "other"
        cells.append(Cell(none if masked is None else words.value(statement.subject, masked.value), mark=mark))
    return (*cells, _agreement(statement, words))


def _reading(statement: Statement, words: Words) -> str:
    subject = words.known("subjects", statement.subject)
    place = statement.question.partition(": ")[2]
    if place:
        subject = f"{subject} ({words.place(place)})"
    if statement.value is None:
        return f"{subject}: {words('spoken.unread')}"
    return f"{subject}: {words.value(statement.subject, statement.value)}"


def _agreement(statement: Statement, words: Words) -> Cell:
    if statement.value is None:
        return Cell(words("spoken.unread"), mark="open")
    if statement.agrees is None:
        return Cell(words("spoken.not_compared"), mark="open")
    if statement.agrees:
        return Cell(words("spoken.agrees"), mark="same")
    matches = {one.match for one in statement.compared} - {SAME}
    return Cell(words("spoken.neighbour" if matches == {NEIGHBOUR} else "spoken.differs"), mark="other")

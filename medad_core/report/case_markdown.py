"""`reports/CASE.md`: the report of a case as Markdown, with its key images as files beside it."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

from medad_core.media import markdown_text
from medad_core.metrics.markdown import markdown_table
from medad_core.report.blocks import Block, Bullets, Cell, Picture, Table, Text
from medad_core.report.case import CaseReport
from medad_core.report.case_sections import case_sections
from medad_core.report.words import words_of


def case_markdown(report: CaseReport) -> str:
    """The report as Markdown, UTF-8."""
    words = words_of(report.language)
    paragraphs = [f"# {markdown_text(words('title', case=report.case_id))}"]
    for section in case_sections(report, words):
        paragraphs.append(f"## {markdown_text(section.title)}")
        for block in section.blocks:
            paragraphs += _paragraphs(block)
    return "\n\n".join(paragraphs) + "\n"


def _paragraphs(block: Block) -> Iterator[str]:
    if isinstance(block, Text):
        text = markdown_text(block.text)
        yield f"**{text}**" if block.kind in ("notice", "phantom") else text
    elif isinstance(block, Bullets):
        yield "\n".join(f"* {markdown_text(item)}" for item in block.items)
    elif isinstance(block, Picture):
        caption = markdown_text(block.caption)
        yield f"![{caption}]({quote(block.file)})\n\n{caption}"
    else:
        if block.title:
            yield f"**{markdown_text(block.title)}**"
        yield _table(block)


def _table(table: Table) -> str:
    columns = len(table.rows[0])
    head = [markdown_text(name) for name in table.head] or [""] * columns
    rows = [[_cell(cell) for cell in row] for row in table.rows]
    return markdown_table(head, rows, "".join("r" if at in table.numeric else "l" for at in range(columns)))


def _cell(cell: Cell) -> str:
    text = markdown_text(cell.text)
    return f"“{text}”" if cell.spoken else text

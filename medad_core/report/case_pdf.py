"""`reports/CASE.pdf`: the report of a case on paper, A4, by fpdf2.

One decision: impression, doubts and pictures are on the first page, and every page says whose report it is and that it
is no medical device. What stands on it are the blocks of all forms (`case_sections`).
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from itertools import zip_longest
from textwrap import wrap

from fpdf import FPDF
from fpdf.enums import TableBordersLayout, TableHeadingsDisplay, XPos, YPos
from fpdf.fonts import FontFace
from PIL import Image

from medad_core.report.blocks import Block, Bullets, Cell, Picture, Section, Table, Text
from medad_core.report.case import CaseReport
from medad_core.report.case_sections import case_sections
from medad_core.report.fonts import Font, files_of, fonts_for, printable
from medad_core.report.words import words_of

_MARGIN_MM = 14
_PICTURE_MM = 58  # height
_PAPER = (255, 255, 255)
_SIZES = {"lead": 12, "plain": 9.5, "notice": 9.5, "phantom": 11, "small": 8}
_GROUNDS = {"notice": (255, 244, 221), "phantom": (240, 233, 252)}
_INK, _SOFT, _LINE = (23, 33, 43), (86, 100, 114), (223, 228, 233)
_MARKS = {"": _INK, "same": (7, 83, 78), "other": (163, 38, 56), "open": (60, 73, 87)}
_LONGEST_CELL = 600  # characters: less than a page, in the narrowest column
_NEXT = {"new_x": XPos.LMARGIN, "new_y": YPos.NEXT}


def case_pdf(report: CaseReport, pictures: Mapping[int, bytes]) -> bytes:
    """The report as PDF. `pictures` are the key images (PNG) by slice index."""
    # It warns of every table of a font that a printed page does not need.
    logging.getLogger("fontTools.subset").setLevel(logging.ERROR)
    words = words_of(report.language)
    sections = case_sections(report, words)
    title = words("title", case=report.case_id)
    fonts = fonts_for(f"{title}{sections}", report.language)
    sheet = _Sheet(title, words("disclaimer"), fonts, report.language)
    for section in sections:
        sheet.write_section(section, pictures)
    return bytes(sheet.output())


def _ratio(png: bytes) -> float:
    """Height over width of a picture."""
    width, height = Image.open(io.BytesIO(png)).size
    return height / width


class _Sheet(FPDF):
    """The pages of one report."""

    def __init__(self, title: str, disclaimer: str, fonts: tuple[Font, ...], language: str) -> None:
        super().__init__(format="A4")
        self._fonts = fonts
        self._running = printable(f"{title} · {disclaimer}", fonts)
        for font in fonts:
            regular, bold = files_of(font)
            self.add_font(font, fname=regular)
            self.add_font(font, "B", fname=bold)
        self.set_fallback_fonts(list(fonts[1:]))
        self.set_margin(_MARGIN_MM)
        self.set_auto_page_break(True, margin=_MARGIN_MM + 4)
        self.set_lang(language)
        self.set_title(printable(title, fonts))
        self.set_creator("medad")
        self.set_draw_color(*_LINE)
        self.add_page()
        self._style(15, bold=True)
        self.multi_cell(0, 7, printable(title, fonts), align="L", **_NEXT)

    def footer(self) -> None:
        """The foot of every page: whose report it is, that it is no medical device, and the page."""
        self.set_y(-_MARGIN_MM)
        self._style(7, colour=_SOFT)
        self.cell(self.epw - 15, 4, self._fitting(self._running, self.epw - 15))
        self.cell(15, 4, f"{self.page_no()} / {{nb}}", align="R")

    def write_section(self, section: Section, pictures: Mapping[int, bytes]) -> None:
        """Write a section below what is there."""
        if self.will_page_break(30):
            self.add_page()
        self.ln(3)
        self._style(11.5, bold=True)
        self.multi_cell(0, 6, printable(section.title, self._fonts), align="L", **_NEXT)
        for block in section.blocks:
            self._write(block, pictures)

    def _write(self, block: Block, pictures: Mapping[int, bytes]) -> None:
        if isinstance(block, Text):
            self._paragraph(block.text, block.kind)
        elif isinstance(block, Bullets):
            for item in block.items:
                self._paragraph(f"• {item}", "plain")
        elif isinstance(block, Table):
            self._table(block)
        elif block.slice_index in pictures:
            self._picture(block, pictures[block.slice_index])

    def _paragraph(self, text: str, kind: str) -> None:
        size = _SIZES[kind]
        ground = _GROUNDS.get(kind)
        self.set_fill_color(*ground or _PAPER)
        self._style(size, bold=kind == "phantom", colour=_SOFT if kind == "small" else _INK)
        self.multi_cell(0, size * 0.5, printable(text, self._fonts), align="L", fill=ground is not None, **_NEXT)
        self.ln(0.8)

    def _picture(self, block: Picture, png: bytes) -> None:
        caption = printable(block.caption, self._fonts)
        ratio = _ratio(png)
        width = min(self.epw, _PICTURE_MM / ratio)
        if self.will_page_break(width * ratio + 8):
            self.add_page()
        self.image(io.BytesIO(png), w=width, h=width * ratio, alt_text=caption)
        self._paragraph(block.caption, "small")

    def _table(self, block: Table) -> None:
        if block.title:
            if self.will_page_break(20):
                self.add_page()
            self._style(9, bold=True)
            self.multi_cell(0, 5.5, printable(block.title, self._fonts), align="L", **_NEXT)
        self._style(7.5)
        self.set_fill_color(*_PAPER)
        with self.table(
            col_widths=block.widths,
            text_align=tuple("RIGHT" if at in block.numeric else "LEFT" for at in range(len(block.widths))),
            line_height=3.8,
            padding=0.8,
            borders_layout=TableBordersLayout.HORIZONTAL_LINES,
            headings_style=FontFace(emphasis="BOLD", color=_SOFT, fill_color=_PAPER),
            repeat_headings=TableHeadingsDisplay.ON_TOP_OF_EVERY_PAGE,
            first_row_as_headings=bool(block.head),
        ) as table:
            if block.head:
                table.row([printable(name, self._fonts) for name in block.head])
            for cells in block.rows:
                texts = [wrap(self._cell_text(cell), _LONGEST_CELL) or [""] for cell in cells]
                # A row that is higher than a page cannot be printed: a long text goes on in the next row.
                for parts in zip_longest(*texts, fillvalue=""):
                    row = table.row()
                    for cell, part in zip(cells, parts, strict=True):
                        row.cell(part, style=FontFace(color=_MARKS[cell.mark]))
        self.ln(1.5)

    def _cell_text(self, cell: Cell) -> str:
        text = printable(cell.text, self._fonts)
        return f"“{text}”" if cell.spoken else text

    def _fitting(self, text: str, width_mm: float) -> str:
        """`text`, cut where it is too long for one line."""
        while self.get_string_width(text) > width_mm:
            text = f"{text[:-2]}…"
        return text

    def _style(self, size: float, bold: bool = False, colour: tuple[int, int, int] = _INK) -> None:
        self.set_font(self._fonts[0], "B" if bold else "", size)
        self.set_text_color(*colour)

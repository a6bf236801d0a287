"""The long table printed: for machines, people, papers and eyes.

One decision: every printed form is made from the same lines and facts, so no two of them can disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from medad_core.reproduce.presentation.facts import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    Facts,
    GalleryRow,
    GallerySlice,
    GroupFacts,
    ThresholdNote,
)
from medad_core.reproduce.presentation.figure import figure_png
from medad_core.reproduce.presentation.gallery import render_gallery
from medad_core.reproduce.presentation.latex import render_latex
from medad_core.reproduce.presentation.markdown import render_markdown
from medad_core.reproduce.presentation.sheet import Sheet
from medad_core.reproduce.presentation.wide import thresholds_csv, wide_csv
from medad_core.reproduce.schema import TABLE
from medad_core.store import join, write_bytes, write_table, write_text

__all__ = [
    "FALSE_NEGATIVE",
    "FALSE_POSITIVE",
    "Facts",
    "GalleryRow",
    "GallerySlice",
    "GroupFacts",
    "ThresholdNote",
    "Written",
    "write_results",
]


@dataclass(frozen=True)
class Written:
    """Where every printed form is; `table` is the long form in Parquet, `text` is Markdown."""

    table: str
    csv: str
    text: str
    latex: str
    figure: str
    gallery: str
    thresholds: str


def write_results(out: str, table: pa.Table, facts: Facts, gallery: Sequence[GalleryRow]) -> Written:
    """Write every printed form of `table` (schema `TABLE`) to the folder `out`, each file whole. Raises StoreError."""
    names = ("table.parquet", "table.csv", "table.md", "table.tex", "figure.png", "gallery.html", "thresholds.csv")
    written = Written(*(join(out, name) for name in names))
    write_table(written.table, table, TABLE)
    sheet = Sheet.of(table, facts)
    write_text(written.csv, wide_csv(sheet))
    write_text(written.text, render_markdown(sheet))
    write_text(written.latex, render_latex(sheet))
    write_bytes(written.figure, figure_png(sheet))
    write_text(written.gallery, render_gallery(sheet, gallery))
    write_text(written.thresholds, thresholds_csv(facts.thresholds))
    return written

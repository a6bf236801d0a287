"""What a reader sees of a run: figures, the gallery and the self-contained page."""

from medad_core.report.gallery import GalleryItem, choose_gallery
from medad_core.report.html import render_report
from medad_core.report.reliability import Bin, reliability_bins
from medad_core.report.summary import CaseRow, RunSummary, case_rows, main_split

__all__ = [
    "Bin",
    "CaseRow",
    "GalleryItem",
    "RunSummary",
    "case_rows",
    "choose_gallery",
    "main_split",
    "reliability_bins",
    "render_report",
]

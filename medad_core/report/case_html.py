"""`reports/CASE.html`: the report of a case as a page in one file, without script, font or request."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from medad_core.report.case import CaseReport
from medad_core.report.environment import page_environment
from medad_core.report.words import words_of


def case_html(report: CaseReport, pictures: Mapping[int, bytes]) -> str:
    """The page as a string, UTF-8. `pictures` are the key images (PNG) by slice index; they are put inside."""
    template = page_environment().get_template("case_page.html.j2")
    inside = {slice_index: picture_uri(png) for slice_index, png in pictures.items()}
    return template.render(report=report, words=words_of(report.language), pictures=inside)


def picture_uri(png: bytes) -> str:
    """A picture as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"

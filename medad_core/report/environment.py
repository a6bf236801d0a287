"""How the pages are made of their templates.

One decision: what a template prints is text. It is escaped, and what cannot be seen in it is spelt out, for every
expression of every page; no template has to ask for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from medad_core.media import html_text
from medad_core.report.blocks import kind_of
from medad_core.report.case_sections import case_sections


def page_environment(**filters: Callable[..., Any]) -> Environment:
    """Jinja2 for the templates of `medad_core/report/templates`, with `filters` by name.

    All of them may print the report of a case (`case_report.html.j2`).
    """
    environment = Environment(
        loader=PackageLoader("medad_core.report"),
        autoescape=True,
        finalize=html_text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters, kind=kind_of)
    environment.globals["case_sections"] = case_sections
    return environment

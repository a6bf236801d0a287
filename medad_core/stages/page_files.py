"""Where the pages and reports of a run lie, and when they are removed.

One decision: what does not match the results would mislead. Whoever writes other results removes what was made of
those before; whoever writes pages and reports finds none of earlier results.
"""

from __future__ import annotations

from collections.abc import Iterable

from medad_core.media import file_name
from medad_core.report.page_assets import assets
from medad_core.run.evaluated import rewritten
from medad_core.store import join, write_bytes, write_text
from medad_core.store.files import make_folder, read_bytes, remove, sweep
from medad_core.store.listing import list_names

FOLDER = "report"
REPORTS_FOLDER = "reports"
CASES_FOLDER = f"{FOLDER}/cases"
INDEX_FILE = f"{FOLDER}/index.html"
LIST_FILE = f"{FOLDER}/worklist.js"
_ASSETS_FOLDER = f"{FOLDER}/assets"
# A place in report.html, which is written before the pages are.
_MARK = b"<!-- pages -->"
_LINK = b'<p><a href="report/index.html">Every case in a viewer, beside its report</a></p>'


def prepare_pages(run: str) -> None:
    """Make the folders of the pages of the run in the folder `run`, with the files that all pages share.

    Raises StoreError, and UsageError where NiiVue is not installed.
    """
    for folder in (CASES_FOLDER, _ASSETS_FOLDER):
        make_folder(join(run, folder))
    for name, content in assets().items():
        uri = join(run, _ASSETS_FOLDER, name)
        if read_bytes(uri) != content:
            write_bytes(uri, content)


def page_names(run: str) -> set[str]:
    """The cases that have a page, by the names of their files without ending."""
    return {name.removesuffix(".html") for name in list_names(join(run, CASES_FOLDER)) if name.endswith(".html")}


def remove_pages(run: str, but: Iterable[str] = ()) -> None:
    """Remove the pages of all cases but these, and what killed writers left; without any, the list of cases too."""
    folder = join(run, CASES_FOLDER)
    kept = {f"{file_name(case_id)}.{ending}" for case_id in but for ending in ("html", "js")}
    sweep(folder)
    if not kept:
        remove_list(run)
    for name in list_names(folder) - kept:
        remove(join(folder, name))


def remove_list(run: str) -> None:
    """Remove the list of cases, with its rows."""
    for name in (INDEX_FILE, LIST_FILE):
        remove(join(run, name))


def remove_reports(run: str) -> None:
    """Remove the reports of all cases, in every form."""
    folder = join(run, REPORTS_FOLDER)
    for name in list_names(folder):
        remove(join(folder, name))


def link_pages(run: str) -> None:
    """Let `report.html` link to the list of cases, where both are there. Raises StoreError."""
    uri = join(run, "report.html")
    page = read_bytes(uri)
    if page is not None and _MARK in page and read_bytes(join(run, INDEX_FILE)) is not None:
        with rewritten(run):
            write_text(uri, page.replace(_MARK, _LINK, 1).decode())

"""The report of a case as files: `reports/CASE.md`, `.html`, `.pdf`, its key images, and `.json`.

One decision: the JSON is removed first and written last, and holds the hash of all that the report is made of. So a
report whose JSON is the one of today's inputs is complete and is not written again, whatever a killed command left.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from medad_core import stopping
from medad_core.errors import CaseError, StoreError
from medad_core.media import file_name
from medad_core.report.case_html import case_html
from medad_core.report.case_markdown import case_markdown
from medad_core.report.case_pdf import case_pdf
from medad_core.report.key_image import key_image
from medad_core.run.run import Run
from medad_core.stages.case_reports import CaseReporter, Drafted
from medad_core.stages.page import CasePages
from medad_core.stages.page_files import REPORTS_FOLDER as FOLDER
from medad_core.stages.page_files import prepare_pages
from medad_core.store import join, write_bytes, write_text
from medad_core.store.files import make_folder, read_bytes, remove, sweep
from medad_core.store.listing import list_names

JSON = "json"
FORMS = ("md", "html", "pdf", JSON)
_KEY_IMAGE = r"-slice-\d+\.png"


@dataclass
class Written:
    """The cases whose reports were written, those whose reports were there, and those without, with the reason."""

    written: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def write_reports(run: Run, cases: Sequence[str]) -> Written:
    """Write the reports and the pages of cases of a run. What is wrong with one case does not stop the others.

    Raises UsageError for a case that the run does not have, or where a font is missing, and StoreError where the run
    has no results yet.
    """
    reporter = CaseReporter(run)
    prepare_folder(run)
    pages = CasePages(run)
    done = Written()
    for case_id in cases:
        stopping.check()
        try:
            drafted = reporter.draft(case_id)
            is_new = write_report(run.uri, drafted), pages.write(drafted.report)
            (done.written if any(is_new) else done.unchanged).append(case_id)
        except (CaseError, StoreError) as error:
            _remove_report(run.uri, file_name(case_id))  # that of before says what is true no more
            done.failed[case_id] = error.reason if isinstance(error, CaseError) else str(error)
    return done


def write_report(run: str, drafted: Drafted) -> bool:
    """Write the files of one case of the run in the folder `run`; returns whether there was anything to write.

    Raises StoreError.
    """
    folder = join(run, FOLDER)
    stem = file_name(drafted.report.case_id)
    text = drafted.report.model_dump_json(indent=1) + "\n"
    images = {one.picture for one in drafted.report.key_slices if one.picture is not None}
    present = list_names(folder)
    is_whole = images | {f"{stem}.{form}" for form in FORMS} <= present
    if is_whole and read_bytes(join(folder, f"{stem}.{JSON}")) == text.encode():
        return False
    remove(join(folder, f"{stem}.{JSON}"))
    for name in _key_images(stem, present) - images:
        remove(join(folder, name))
    _write_forms(folder, stem, drafted)
    write_text(join(folder, f"{stem}.{JSON}"), text)
    return True


def _write_forms(folder: str, stem: str, drafted: Drafted) -> None:
    report = drafted.report
    pictures = {item.slice_index: key_image(item, drafted.spacing_mm) for item in drafted.items}
    for one in report.key_slices:
        if one.picture is not None:
            write_bytes(join(folder, one.picture), pictures[one.slice_index])
    write_text(join(folder, f"{stem}.md"), case_markdown(report))
    write_text(join(folder, f"{stem}.html"), case_html(report, pictures))
    write_bytes(join(folder, f"{stem}.pdf"), case_pdf(report, pictures))


def remove_orphans(run: Run, cases: Sequence[str]) -> list[str]:
    """Remove the reports of all but these cases, which the run has no more, and what killed writers left.

    Returns the names of their files, without their end.
    """
    folder = join(run.uri, FOLDER)
    sweep(folder)
    present = list_names(folder)
    kept = {file_name(case_id) for case_id in cases}
    stems = {stem for stem, _, form in (name.rpartition(".") for name in present) if form in FORMS} - kept
    for stem in sorted(stems):
        _remove_report(run.uri, stem)
    return sorted(stems)


def _remove_report(run: str, stem: str) -> None:
    folder = join(run, FOLDER)
    present = list_names(folder)
    for name in ({f"{stem}.{form}" for form in FORMS} & present) | _key_images(stem, present):
        remove(join(folder, name))


def prepare_folder(run: Run) -> str:
    """The folder of the reports; it and that of the pages are made where they are not there. Raises StoreError."""
    folder = join(run.uri, FOLDER)
    make_folder(folder)
    prepare_pages(run.uri)
    return folder


def _key_images(stem: str, present: set[str]) -> set[str]:
    return {name for name in present if re.fullmatch(re.escape(stem) + _KEY_IMAGE, name)}

"""A run with the pages of its cases, and a browser that opens them from the disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from browser import ARGUMENTS, chromium
from playwright.sync_api import Browser, Page
from prefect_harness import WORDS, break_case, write_case

from medad_core.config import Settings, load_settings
from medad_core.data.table import COLUMNS, write_case_table
from medad_core.media import file_name, read_csv
from medad_core.run.run import Run
from medad_core.stages.case_reports import CaseReporter
from medad_core.stages.page import CasePages, write_index
from medad_core.stages.page_files import prepare_pages
from medad_core.stages.screen import screen

HOSTILE = "<img src=x onerror=alert(1)>"
FORMULA = "=cmd()|' /C calc'!A0"
HEALTHY, PHANTOM, BROKEN = "healthy \u202e50%/#?", "phantom", "broken"
PATIENT_TIMEOUT_MS = 120_000  # the machine that draws without a graphics card may be busy


def write_table(root: Path) -> Path:
    """Four cases and a broken one, one of them unlabelled, with names that nobody should give."""
    rows = []
    for number, case_id in enumerate((HOSTILE, FORMULA, HEALTHY, PHANTOM, BROKEN)):
        folder = f"BraTS2021_{number:05d}"
        write_case(root, folder, seed=number, tumour=range(0) if case_id == HEALTHY else range(60, 62 + number % 2))
        flair = f"{folder}/{folder}_flair.nii.gz"
        if case_id == PHANTOM:
            image = nib.load(root / flair)
            image.header["descrip"] = b"medad phantom"
            nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), None, image.header), root / flair)
        if case_id == BROKEN:
            break_case(root, folder)
        line = {"case_id": case_id, "patient": f"P{number}"}
        rows.append({**line, "modality": "flair", "role": "volume", "path": flair})
        if case_id != FORMULA:
            mask = {"role": "tumour mask", "path": f"{folder}/{folder}_seg.nii.gz", "tumour_labels": "1 2 4"}
            rows.append({**line, "modality": "", **mask})
    write_case_table(root / "cases.csv", [{**dict.fromkeys(COLUMNS, ""), **row} for row in rows], root)
    return root / "cases.csv"


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """A run of `write_table` with its pages; tests that change it work on a copy."""
    data = write_table(tmp_path_factory.mktemp("data"))
    out = tmp_path_factory.mktemp("screened") / "run"
    screen(str(data), str(out), load_settings(None, list(WORDS)))
    assert write_pages(out) == 4
    return out


def write_pages(out: Path, settings: Settings | None = None) -> int:
    """The pages of all cases, and their list, without the other files of reports; how many cases were written."""
    run = Run.reopen(str(out), settings)
    reporter = CaseReporter(run)
    prepare_pages(run.uri)
    pages = CasePages(run)
    written = sum(pages.write(reporter.draft(case_id).report) for case_id in reporter.results.cases)
    write_index(run)
    return written


@pytest.fixture
def run_copy(run_folder, tmp_path) -> Path:
    return shutil.copytree(run_folder, tmp_path / "run")


@pytest.fixture(scope="module")
def launch() -> Iterator[Callable[[list[str]], Browser]]:
    """Starts Chromium with arguments."""
    with chromium() as start:
        yield start


@pytest.fixture(scope="module")
def browser(launch) -> Iterator[Browser]:
    opened = launch(ARGUMENTS)
    yield opened
    opened.close()


@dataclass
class Watched:
    """A page of the browser, with all that it asked for, and all that it complained of."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def assert_quiet(self, folder: Path) -> None:
        """No request left the folder, and nothing was complained of."""
        outside = [url for url in self.requests if not unquote(url).startswith((f"file://{folder}/", "data:"))]
        assert self.requests and not outside
        assert not self.complaints


@pytest.fixture
def watch(browser):
    """Opens a page of a width and a colour scheme, and watches it."""
    contexts = []

    def open_page(width: int = 1280, scheme: str = "light") -> Watched:
        context = browser.new_context(viewport={"width": width, "height": 860}, color_scheme=scheme)
        context.set_default_timeout(PATIENT_TIMEOUT_MS)
        contexts.append(context)
        watched = Watched(context.new_page())
        watched.page.on("request", lambda request: watched.requests.append(request.url))
        watched.page.on("console", lambda message: watched.complaints.append(message.text))
        watched.page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        watched.page.on("dialog", lambda dialog: (watched.complaints.append(dialog.message), dialog.dismiss()))
        return watched

    yield open_page
    for context in contexts:
        context.close()


def open_index(watched: Watched, run: Path, state: str = "") -> Page:
    watched.page.goto(f"{(run / 'report/index.html').as_uri()}{state and f'#{state}'}")
    return watched.page


def open_case(watched: Watched, run: Path, case_id: str) -> Page:
    watched.page.goto((run / "report/cases" / f"{file_name(case_id)}.html").as_uri())
    return wait_for_viewer(watched.page)


def wait_for_viewer(page: Page) -> Page:
    page.wait_for_selector("body[data-viewer]")
    assert page.get_attribute("body", "data-viewer") == "ready", page.inner_text("#why")
    return page


def names(page: Page) -> list[str]:
    # Rows out of sight are not laid out: their text is not "inner text" of a browser.
    return page.locator("#rows .name").all_text_contents()


def results(run: Path) -> tuple[pd.DataFrame, pd.DataFrame, list[dict[str, str]]]:
    """cases.parquet by case, predictions.parquet, worklist.csv."""
    cases = pd.read_parquet(run / "cases.parquet").set_index("case_id")
    return cases, pd.read_parquet(run / "predictions.parquet"), list(read_csv((run / "worklist.csv").read_text()))

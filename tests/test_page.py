"""The pages of a run, in a real browser, from the disk: what a reader does with them, and what they may not do."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import axe_core_python
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from browser import ARGUMENTS, chromium
from playwright.sync_api import Browser, Page
from playwright.sync_api import Error as PlaywrightError
from prefect_harness import WORDS, break_case, write_case
from test_cli import medad

from medad_core.config import Settings, load_settings
from medad_core.data.table import COLUMNS, write_case_table
from medad_core.errors import StoreError
from medad_core.media import file_name, read_csv, visible
from medad_core.metrics import metric_rows
from medad_core.models.decoder import render_map
from medad_core.report.curves import curves, sensitivity_by_size
from medad_core.report.index_page import render_index, worklist_script
from medad_core.report.page_assets import assets
from medad_core.report.scripts import json_text
from medad_core.report.summary import RunSummary
from medad_core.report.viewer import case_volumes, outline, picture_axes
from medad_core.report.worklist_rows import PageRow, Strip
from medad_core.run.run import Run
from medad_core.stages.case_files import write_reports
from medad_core.stages.case_reports import CaseReporter, case_report_of
from medad_core.stages.evaluate import evaluate_run
from medad_core.stages.page import CasePages, write_index
from medad_core.stages.page_files import prepare_pages
from medad_core.stages.rows import grids_of, images_of, windows_of
from medad_core.stages.screen import screen
from medad_core.store import read_table

pytest_plugins = ("prefect_harness",)

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


@pytest.fixture(scope="module")
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


def pixels(page: Page) -> bytes:
    """What the viewer shows, once two pictures in a row are the same."""
    before = b""
    while (now := page.locator(".screen").screenshot()) != before:
        before = now
    return now


def names(page: Page) -> list[str]:
    # Rows out of sight are not laid out: their text is not "inner text" of a browser.
    return page.locator("#rows .name").all_text_contents()


def column(page: Page, key: str) -> list[str]:
    return page.locator(f"#rows .{key}").all_text_contents()


def results(run: Path) -> tuple[pd.DataFrame, pd.DataFrame, list[dict[str, str]]]:
    """cases.parquet by case, predictions.parquet, worklist.csv."""
    cases = pd.read_parquet(run / "cases.parquet").set_index("case_id")
    return cases, pd.read_parquet(run / "predictions.parquet"), list(read_csv((run / "worklist.csv").read_text()))


# The list


def test_the_list_is_the_worklist_and_its_numbers_are_those_of_the_tables(run_folder, watch):
    watched = watch()
    page = open_index(watched, run_folder)
    cases, predictions, entries = results(run_folder)
    order = [entry["case_id"] for entry in entries]
    assert names(page) == [visible(name) for name in (*order, BROKEN)]
    assert column(page, "place.num")[: len(order)] == [entry["place"] for entry in entries]
    assert column(page, "finding") == ["Finding of", *(entry["finding"] for entry in entries), "rejected"][1:]
    of_case = predictions.groupby("case_id")
    expected = {
        "volume_ml": [
            f"{'≥ ' if cases.loc[name, 'is_cut'] else ''}{cases.loc[name, 'volume_ml']:.2f}" for name in order
        ],
        "score": [f"{of_case['anomaly_score'].max()[name]:.3f}" for name in order],
        "p_yes": [f"{of_case['p_yes'].max()[name]:.3f}" for name in order],
        "yes": [f"{(of_case.get_group(name)['verdict'] == 'yes').sum()} of 3" for name in order],
        "expert_ml": ["–" if name == FORMULA else f"{cases.loc[name, 'volume_ml_true']:.2f}" for name in order],
    }
    assert {key: column(page, key)[:-1] for key in expected} == expected
    watched.assert_quiet(run_folder / "report")


def test_what_the_metrics_say_stands_above_the_list_with_its_interval(run_folder, watch):
    page = open_index(watch(), run_folder)
    table = metric_rows(read_table(str(run_folder / "metrics.parquet")))
    rows = {(row.metric, row.level, row.split): row for row in table}
    split = "test" if "Split: test" in page.inner_text("h2 >> nth=0") else "all"
    auroc = rows["map_auroc", "image", split]
    tile = page.locator(".tile", has_text="Slices ranked by the map").inner_text()
    interval = auroc.reason if auroc.ci_low is None else f"{auroc.ci_low:.3f} to {auroc.ci_high:.3f}"
    assert f"{auroc.value:.3f}" in tile and interval in tile
    figures = page.locator(".figures").inner_text()
    assert "ROC" in figures and f"Map: {auroc.value:.3f}" in figures
    for row in sensitivity_by_size([row for row in table if row.split == split]):
        assert row.subset in figures
    assert page.locator(".figures svg[role=img][aria-label]").count() == page.locator(".figures svg").count() >= 3


def test_a_click_sorts_and_another_turns_the_order_and_the_address_keeps_it(run_folder, watch):
    page = open_index(watch(), run_folder)
    page.click("#heads >> text=Volume, ml")
    volumes = [float(text.removeprefix("≥ ")) for text in column(page, "volume_ml") if text != "–"]
    assert volumes == sorted(volumes, reverse=True) and column(page, "volume_ml")[-1] == "–"
    head = page.locator("#heads th", has_text="Volume, ml")
    assert head.get_attribute("aria-sort") == "descending"
    page.click("#heads >> text=Volume, ml")
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, "volume_ml")[0] == "0.00"
    assert column(page, "volume_ml")[-1] == "–"  # what is not known stays last
    shown = names(page)
    page.reload()
    assert names(page) == shown and "sort=volume_ml" in page.url
    assert page.locator("#heads th[aria-sort]:not([aria-sort=none])").count() == 1


def test_search_and_filters_narrow_the_list_and_the_address_keeps_them(run_folder, watch):
    watched = watch()
    page = open_index(watched, run_folder)
    page.fill("input[name=q]", "ONERROR")
    assert names(page) == [HOSTILE] and page.inner_text("#count") == "1 of 5 cases"
    page.click("text=Show all")
    assert len(names(page)) == 5 and page.input_value("input[name=q]") == ""
    page.select_option("select[name=finding]", "rejected")
    assert names(page) == [BROKEN] and "slices:" in column(page, "doubts")[0]
    page.click("text=Show all")
    _, predictions, entries = results(run_folder)
    scores = predictions.groupby("case_id")["anomaly_score"].max()
    middle = round(float(scores.median()), 3)
    page.fill("input[name=min]", str(middle))
    assert sorted(names(page)) == sorted(visible(name) for name in scores.index[scores.round(3) >= middle])
    page.reload()
    assert page.input_value("input[name=min]") == str(middle) and page.inner_text("#count") != "5 of 5 cases"
    page.click("text=Show all")
    page.check("input[name=disagree]")
    halves = {"map only", "language model only"}
    assert names(page) == [visible(entry["case_id"]) for entry in entries if entry["finding"] in halves]
    page.uncheck("input[name=disagree]")
    page.check("input[name=doubt]")
    assert names(page) == [visible(entry["case_id"]) for entry in entries if entry["doubts"]] + [BROKEN]
    watched.assert_quiet(run_folder / "report")


def test_a_strip_has_a_bar_a_slice_as_high_as_its_score(run_folder, watch):
    page = open_index(watch(), run_folder)
    _, predictions, entries = results(run_folder)
    first = entries[0]["case_id"]
    scores = predictions[predictions["case_id"] == first].sort_values("slice_index")["anomaly_score"]
    drawn = page.locator("#rows .strip .bars >> nth=0").get_attribute("d")
    heights = [float(height) / 20 for height in re.findall(r"v-([\d.]+)h", drawn)]
    assert heights == pytest.approx(scores.tolist(), abs=0.01)
    assert "Slices 60 to 62" in page.locator("#rows .strip >> nth=0").get_attribute("aria-label")


# A case


def test_a_case_opens_from_the_list_and_goes_back_to_the_list_as_it_was(run_folder, watch):
    watched = watch()
    page = open_index(watched, run_folder, "finding=map+and+language+model&sort=case")
    listed = names(page)
    assert len(listed) >= 2
    page.click("#rows a >> nth=0")
    wait_for_viewer(page)
    assert page.inner_text("#place") == f"1 of {len(listed)}" and page.get_attribute("#before", "href") is None
    assert page.inner_text(".title .id") == listed[0]
    page.click("#after")
    wait_for_viewer(page)
    assert page.inner_text(".title .id") == listed[1]
    page.keyboard.press("p")
    page.wait_for_function("name => document.querySelector('.title .id')?.textContent === name", arg=listed[0])
    page.click("#back")
    page.wait_for_selector("#rows tr")
    assert names(page) == listed and "sort=case" in page.url
    watched.assert_quiet(run_folder / "report")


def test_arrow_keys_move_through_the_slices_and_layers_change_what_is_seen(run_folder, watch):
    watched = watch()
    page = open_case(watched, run_folder, HOSTILE)
    look_at = case_report_of(Run.reopen(str(run_folder)), HOSTILE).look_at
    assert page.inner_text("#number") == str(look_at)
    page.select_option("#planes", "axial")
    page.keyboard.press("Home")
    shown = {look_at: pixels(page)}
    page.locator("body").press("PageDown")
    assert page.inner_text("#number") == "60"
    shown[60] = pixels(page)
    for number in (61, 62, 62):
        page.keyboard.press("ArrowUp")
        assert page.inner_text("#number") == str(number)
    shown[62] = pixels(page)
    assert len(set(shown.values())) == len(shown)
    page.locator("#viewer").focus()
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#number") == "61" == page.input_value("#slice")
    page.locator("#viewer").blur()  # which has a ring while it has the focus
    page.keyboard.press("Home")
    whole = pixels(page)
    assert whole == shown[look_at]
    without = {}
    for layer in ("map", "found", "expert"):
        page.uncheck(f"#{layer}")
        without[layer] = pixels(page)
        page.check(f"#{layer}")
    assert len({whole, *without.values()}) == 4
    page.locator("#opacity").fill("20")
    assert pixels(page) != whole and page.evaluate("document.getElementById('scale').style.opacity") == "0.2"
    page.select_option("#planes", "three")
    assert pixels(page) != whole
    watched.assert_quiet(run_folder / "report")


def test_the_report_of_the_case_stands_beside_its_viewer(run_folder, watch):
    page = open_case(watch(), run_folder, HOSTILE)
    text = page.inner_text(".read")
    report = case_report_of(Run.reopen(str(run_folder)), HOSTILE)
    assert report.impression[0] in text and report.key_slices[0].statements[0].answer in text
    assert "Not a medical device" in page.inner_text("header")
    look, read = page.locator(".look").bounding_box(), page.locator(".read").bounding_box()
    assert read["x"] > look["x"] + look["width"] - 1
    assert [page.locator(".scale").inner_text()[at] for at in (0, -1)] == ["0", "1"]


def test_a_phantom_is_called_one_in_the_list_and_on_its_page_and_no_other_case_is(run_folder, watch):
    page = open_index(watch(), run_folder)
    assert "Generated pictures, no patients." in page.inner_text("header")
    assert page.locator("#rows tr", has_text="phantom, no patient").locator("a").all_text_contents() == [PHANTOM]
    assert "not a patient" in open_case(watch(), run_folder, PHANTOM).inner_text("header")
    assert "patient." not in open_case(watch(), run_folder, HOSTILE).inner_text("header")


def test_a_case_without_mask_has_no_outline_of_an_expert(run_folder, watch):
    watched = watch()
    page = open_case(watched, run_folder, FORMULA)
    assert page.locator("#expert").count() == 0 and page.locator("#found").count() == 1
    watched.assert_quiet(run_folder / "report")


def test_a_map_that_finds_nothing_has_a_page_and_no_outline(run_folder, watch):
    run = Run.reopen(str(run_folder))
    assert case_report_of(run, HEALTHY).found.lesions == 0
    watched = watch()
    page = open_case(watched, run_folder, HEALTHY)
    before = pixels(page)
    page.uncheck("#found")
    assert pixels(page) == before
    watched.assert_quiet(run_folder / "report")


def test_a_browser_without_webgl_says_so_and_shows_the_report(run_folder, launch):
    chromium = launch(["--no-sandbox", "--disable-3d-apis"])
    page = chromium.new_page()
    page.goto((run_folder / "report/cases" / f"{file_name(HOSTILE)}.html").as_uri())
    page.wait_for_selector("body[data-viewer=failed]")
    assert "It needs WebGL 2" in page.inner_text("#failed") and "Report of case" in page.inner_text(".read")
    page.keyboard.press("PageDown")
    assert page.inner_text("#number") == "60"  # strip and numbers go on
    chromium.close()


# What pages may not do


def test_hostile_names_and_answers_stay_text(run_copy, watch):
    script = "<script>document.title='x'</script><img src=x onerror=alert(2)>"
    predictions = pd.read_parquet(run_copy / "predictions.parquet")
    table = read_table(str(run_copy / "predictions.parquet"))
    changed = table.set_column(table.schema.get_field_index("answer"), "answer", [[script] * len(predictions)])
    from medad_core.store import write_table as write_parquet

    write_parquet(str(run_copy / "predictions.parquet"), changed.cast(table.schema))
    assert write_pages(run_copy) == 4
    watched = watch()
    page = open_index(watched, run_copy)
    assert HOSTILE in names(page) and FORMULA in names(page) and page.locator("#rows img, header img").count() == 0
    page.click(f"#rows a >> text={HOSTILE}")
    wait_for_viewer(page)
    assert page.title() == f"{HOSTILE} · medad" and script in page.inner_text(".read")
    assert page.locator("main img, main script").count() == 0
    page = open_index(watched, run_copy)
    page.fill("input[name=q]", "healthy")
    assert names(page) == [visible(HEALTHY)] and "\u202e" not in page.text_content("body")
    page.click("#rows a")
    wait_for_viewer(page)
    watched.assert_quiet(run_copy / "report")


@pytest.mark.parametrize("name", ["report/index.html", f"report/cases/{file_name(HOSTILE)}.html"])
def test_the_policy_of_a_page_stops_a_script_within_it_and_every_request(run_copy, watch, name):
    page_file = run_copy / name
    (page_file.parent / "bait.js").write_text("document.body.append('loaded'); eval('document.title = `eval`');")
    bait = "<script>document.title = 'inline'</script><p onclick=\"document.title = 'handler'\" id='bait'>bait</p>"
    bait += "<script src='bait.js' defer></script><link rel='stylesheet' href='data:text/css,body{display:none}'>"
    page_file.write_text(page_file.read_text().replace("<main", f"{bait}<main", 1))
    watched = watch()
    watched.page.goto(page_file.as_uri())
    watched.page.click("#bait")
    assert "loaded" in watched.page.inner_text("body")
    assert watched.page.title() not in ("inline", "handler", "eval")
    for request in ("fetch(location.href)", "fetch('http://127.0.0.1:9/')", "fetch('data:text/plain,x')"):
        with pytest.raises(PlaywrightError, match="Failed to fetch"):
            watched.page.evaluate(request)
    assert sum("Content Security Policy" in text for text in watched.complaints) >= 6


def test_data_in_a_script_cannot_end_it_and_comes_back_as_it_was():
    value = {"a": "</script><!--&\u2028\u2029\ud800", "b": [None, True, 0.125]}
    text = json_text(value)
    assert not set("<>&\u2028") & set(text) and text.isascii() and json.loads(text) == value
    with pytest.raises(ValueError, match="JSON"):
        json_text(float("nan"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_have_no_serious_fault_for_those_who_do_not_see_or_point(run_folder, watch, width, scheme):
    axe = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text()
    watched = watch(width, scheme)
    for page in (open_index(watched, run_folder), open_case(watched, run_folder, PHANTOM)):
        page.evaluate(axe)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        serious = [
            (fault["id"], node["html"], node["failureSummary"])
            for fault in found
            if fault["impact"] in ("serious", "critical")
            for node in fault["nodes"]
        ]
        assert not serious, serious[:3]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == (scheme == "dark")


# Volumes and curves


def decoded(run: Path, case_id: str, name: str) -> nib.Nifti1Image:
    import base64
    import gzip

    text = (run / "report/cases" / f"{file_name(case_id)}.js").read_text()
    volumes = json.loads(text.removeprefix("const shownCase = ").rstrip(";\n"))["volumes"]
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(volumes[name])))


def test_the_viewer_has_the_slices_the_map_and_the_outlines_of_the_run_where_the_file_has_them(run_folder):
    run = Run.reopen(str(run_folder))
    slices, maps = run.stage("slices").read_case(HOSTILE), run.stage("maps").read_case(HOSTILE)
    flair, shown = decoded(run_folder, HOSTILE, "flair"), decoded(run_folder, HOSTILE, "map")
    assert nib.aff2axcodes(flair.affine) == ("R", "A", "S") and np.array_equal(flair.affine, shown.affine)
    images = images_of(slices)
    assert np.array_equal(np.asarray(flair.dataobj), images[:, ::-1, ::-1].transpose(2, 1, 0))
    windows = windows_of(maps)
    drawn = np.stack(
        [render_map(grid, 64, 64, None if windows is None else windows[at]) for at, grid in enumerate(grids_of(maps))]
    )
    turned = drawn[:, ::-1, ::-1].transpose(2, 1, 0)
    assert np.abs(shown.get_fdata() - turned).max() <= 0.5 / 255 + 1e-6
    found = np.asarray(decoded(run_folder, HOSTILE, "found").dataobj)
    assert np.array_equal(found > 0, outline(drawn >= 0.5)[:, ::-1, ::-1].transpose(2, 1, 0) > 0) and found.any()
    # The same place in the patient has the same voxel in the file that was screened.
    source = nib.load(next(Path(run.cohort.root).glob("BraTS2021_00000/*_flair.nii.gz")))
    voxels = np.argwhere(np.asarray(flair.dataobj) > 0)
    there = nib.affines.apply_affine(np.linalg.inv(source.affine) @ flair.affine, voxels).round().astype(int)
    assert (np.asarray(source.dataobj)[tuple(there.T)] > 0).mean() > 0.99


def test_an_outline_is_the_edge_of_a_mask_within_its_slice():
    masks = np.zeros((2, 6, 6), bool)
    masks[0, 1:5, 1:5] = True
    masks[1, 0, 0] = True
    edge = outline(masks) > 0
    assert edge[0].sum() == 12 and not edge[0, 2:4, 2:4].any() and edge[1].sum() == 1
    assert not outline(np.zeros((1, 4, 4), bool)).any()


def test_a_case_whose_place_nobody_noted_keeps_its_sides():
    images = np.zeros((2, 3, 4), np.uint8)
    images[1, 0, 0] = 7  # superior, anterior, the patient's right
    volumes = case_volumes(images, images / 255, None, 0.5, 60, 61, picture_axes((1.0, 2.0, 3.0), None))
    assert volumes.expert is None and volumes.peak == (3, 2, 1)
    import base64
    import gzip

    flair = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(volumes.flair)))
    assert flair.header.get_zooms() == (2, 1, 3) and nib.aff2axcodes(flair.affine) == ("R", "A", "S")
    assert np.argwhere(np.asarray(flair.dataobj)).tolist() == [[3, 2, 1]]


def test_areas_under_the_curves_are_those_of_the_metrics(run_folder):
    _, predictions, _ = results(run_folder)
    rows = [row for row in metric_rows(read_table(str(run_folder / "metrics.parquet"))) if row.split == "all"]
    drawn = curves(predictions, {}, rows)
    assert {one.detector for one in drawn.roc} >= {"map", "p_yes"}
    for one in (*drawn.roc, *drawn.precision_recall):
        x, y = np.array([[float(number) for number in point.split()] for point in one.path[1:].split("L")]).T
        if one.detector != "brightness":
            area = abs(np.trapezoid((100 - y) / 100, x / 100))
            assert area == pytest.approx(one.area.value, abs=0.005), one
    assert not curves(predictions.assign(label=None), {}, []).roc


# Writing


def test_only_what_has_changed_is_written_again(run_copy):
    cases = run_copy / "report/cases"
    before = {path.name: path.stat().st_mtime_ns for path in cases.iterdir()}
    assert write_pages(run_copy) == 0
    assert {path.name: path.stat().st_mtime_ns for path in cases.iterdir()} == before
    (cases / f"{file_name(HOSTILE)}.html").unlink()  # a writer that was killed between its files
    (cases / f"{file_name(PHANTOM)}.js").unlink()
    page = cases / f"{file_name(HEALTHY)}.html"
    page.write_text(page.read_text().replace('name="medad-inputs" content="', 'name="medad-inputs" content="0', 1))
    (cases / ".x.html.0.tmp").write_text("half")
    (cases / "gone.html").write_text("a case that the run has no more")
    assert write_pages(run_copy) == 3
    assert {path.name for path in cases.iterdir()} == set(before)


def test_other_results_remove_the_pages_and_the_same_results_keep_them(run_copy):
    run = Run.reopen(str(run_copy))
    report = run_copy / "report.html"
    kept = sorted((run_copy / "report").rglob("*.*"))
    assert len(kept) > 12 and 'href="report/index.html"' in report.read_text()
    evaluate_run(run)
    assert sorted((run_copy / "report").rglob("*.*")) == kept and 'href="report/index.html"' in report.read_text()
    settings = run.settings.evaluate.model_copy(update={"map_threshold": 0.7})
    changed = run.settings.model_copy(update={"evaluate": settings})
    evaluate_run(Run.reopen(str(run_copy), changed))
    assert not list((run_copy / "report").rglob("*.html")) and "report/index.html" not in report.read_text()
    assert write_pages(run_copy, changed) == 4 and 'href="report/index.html"' in report.read_text()
    assert "map above 0.7" in (run_copy / "report/cases" / f"{file_name(HOSTILE)}.html").read_text()
    # The settings of the run do not know of the other threshold; its results do.
    write_index(Run.reopen(str(run_copy)))
    assert "map above 0.7" in (run_copy / "report/index.html").read_text()


def test_other_metrics_alone_remove_the_list_and_other_results_the_reports_in_every_form(run_copy):
    run = Run.reopen(str(run_copy))
    done = write_reports(run, list(run.stage("answers").read()["case_id"].unique().to_pylist())[:1])
    assert not done.failed and len(list((run_copy / "reports").glob("*.pdf"))) == 1
    others = run.settings.evaluate.model_copy(update={"bootstrap": 0})
    evaluate_run(Run.reopen(str(run_copy), run.settings.model_copy(update={"evaluate": others})))
    assert not (run_copy / "report/index.html").exists() and not (run_copy / "report/worklist.js").exists()
    assert len(list((run_copy / "report/cases").glob("*.html"))) == 4 and list((run_copy / "reports").glob("*.pdf"))
    others = run.settings.evaluate.model_copy(update={"map_threshold": 0.7})
    evaluate_run(Run.reopen(str(run_copy), run.settings.model_copy(update={"evaluate": others})))
    assert not list((run_copy / "report/cases").glob("*")) and not list((run_copy / "reports").glob("*"))


def test_a_case_without_a_page_is_listed_and_not_linked(run_copy, watch):
    for path in (run_copy / "report/cases").glob(f"{PHANTOM}.*"):
        path.unlink()
    write_index(Run.reopen(str(run_copy)))
    page = open_index(watch(), run_copy)
    assert PHANTOM in names(page) and page.locator("#rows a").count() == 3


def test_the_command_writes_reports_and_pages_and_names_the_list(run_copy, server):
    shutil.rmtree(run_copy / "report")
    done = medad("report", run_copy)
    assert done.exit_code == 3 and f"{run_copy}/report/index.html" in done.output, done.output
    assert BROKEN in done.stderr and len(list((run_copy / "report/cases").glob("*.html"))) == 4
    assert (run_copy / "reports" / f"{PHANTOM}.pdf").is_file()
    again = medad("report", run_copy, PHANTOM)
    assert again.exit_code == 0 and "0 reports written, 1 unchanged" in again.output


def test_pages_can_be_read_by_whom_the_run_can_be_read(run_folder):
    files = [path for path in (run_folder / "report").rglob("*") if path.is_file()]
    assert len(files) > 12 and all(path.stat().st_mode & 0o777 == 0o600 for path in files)


def test_a_run_that_is_not_finished_has_no_page_and_says_what_to_do(run_copy):
    (run_copy / "answers" / "_manifest.json").unlink()
    for write in (write_index, CaseReporter):
        with pytest.raises(StoreError, match="same command again"):
            write(Run.reopen(str(run_copy)))


@pytest.mark.parametrize("name", ["worklist.csv", "cases.parquet", "metrics.parquet", "predictions.parquet"])
def test_a_run_whose_results_are_lost_says_what_to_do(run_copy, name):
    (run_copy / name).unlink()
    with pytest.raises(StoreError, match="medad evaluate"):
        write_index(Run.reopen(str(run_copy)))


def test_a_single_unlabelled_slice_has_a_list_without_metrics_and_a_page_with_one_plane(tmp_path, watch):
    write_case(tmp_path / "data", "BraTS2021_00007", seed=3)
    (tmp_path / "data/BraTS2021_00007/BraTS2021_00007_seg.nii.gz").unlink()
    words = [*WORDS, "data.first_slice=61", "data.last_slice=61"]
    screen(str(tmp_path / "data"), str(tmp_path / "run"), load_settings(None, words))
    write_pages(tmp_path / "run")
    watched = watch()
    page = open_index(watched, tmp_path / "run")
    assert "no metrics" in page.inner_text("main") and page.locator(".tile, .figures").count() == 0
    assert page.locator("#heads", has_text="Expert").count() == 0
    page.click("#rows a")
    wait_for_viewer(page)
    assert page.locator("#planes option").all_inner_texts() == ["axial"]
    page.keyboard.press("ArrowUp")
    assert page.inner_text("#number") == "61"
    watched.assert_quiet(tmp_path / "run/report")


def test_a_run_of_rejected_cases_only_lists_them(watch, tmp_path):
    rows = [PageRow(1, "a", None, "rejected", "slices: truncated")]
    watched = watch()
    page = open_index(watched, made_list(tmp_path, rows))
    assert names(page) == ["a"] and page.inner_text("#count") == "1 of 1 cases"
    assert "truncated" in page.text_content("#rows")
    watched.assert_quiet(tmp_path / "report")


def made_list(folder: Path, rows: list[PageRow]) -> Path:
    """The list of made-up rows, written as that of a run is."""
    (folder / "report/assets").mkdir(parents=True)
    for name, content in assets().items():
        (folder / "report/assets" / name).write_bytes(content)
    summary = RunSummary("cohort", "today", False, (("LLM", "small"),), "abc", 0.5)
    (folder / "report/index.html").write_text(render_index(summary, [], rows, curves_of_none(), []))
    (folder / "report/worklist.js").write_text(worklist_script(rows))
    return folder


def curves_of_none():
    from medad_core.report.curves import Curves

    return Curves()


def test_a_list_of_a_thousand_cases_opens_in_two_seconds_and_300_mb(browser, tmp_path):
    generator = np.random.default_rng(0)
    rows = []
    for place in range(1, 1001):
        scores = tuple(generator.random(41).round(3).tolist())
        strip = Strip(60, scores, scores, (1,) * 41)
        rows.append(
            PageRow(
                place, f"BraTS2021_{place:05d}", f"P{place}", "map only", "p(yes) near one half in 3 of 41 slices",
                f"BraTS2021_{place:05d}", volume_ml=round(generator.random() * 90, 2), longest_mm=40.0, side="left",
                regions="frontal lobe, insula", p_yes=max(scores), score=max(scores), yes=20, slices=41, look_at=77,
                strip=strip,
            )
        )  # fmt: skip
    folder = made_list(tmp_path, rows)
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})  # of this page, however busy the machine is
    page.goto((folder / "report/index.html").as_uri())
    assert page.locator("#rows tr").count() == 1000
    spent = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    assert spent["TaskDuration"] < 2
    page.click("#heads >> text=Volume, ml")
    page.fill("input[name=q]", "0099")
    assert page.inner_text("#count") == "11 of 1000 cases"
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    renderers = [process["id"] for process in processes if process["type"] == "renderer"]
    resident = [
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") for pid in renderers
    ]
    assert resident and max(resident) < 300e6
    context.close()


def test_a_case_page_is_written_from_its_report_alone(run_copy):
    run = Run.reopen(str(run_copy))
    report = case_report_of(run, HOSTILE)
    assert not CasePages(run).write(report)
    assert CasePages(run).write(report.model_copy(update={"finding": "none"}))

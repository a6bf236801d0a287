"""The list of a run's cases, in a real browser from the disk: it shows what the tables say, sorts and filters."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from pages import (
    BROKEN,
    FORMULA,
    HOSTILE,
    PHANTOM,
    names,
    open_index,
    results,
    wait_for_viewer,
    write_pages,
)
from playwright.sync_api import Page
from prefect_harness import WORDS, write_case

from medad_core.config import load_settings
from medad_core.media import visible
from medad_core.metrics import metric_rows
from medad_core.report.curves import curves, sensitivity_by_size
from medad_core.report.index_page import render_index, worklist_script
from medad_core.report.page_assets import assets
from medad_core.report.summary import RunSummary
from medad_core.report.worklist_rows import PageRow, Strip
from medad_core.run.run import Run
from medad_core.stages.page import write_index
from medad_core.stages.screen import screen
from medad_core.store import read_table

pytest_plugins = ("prefect_harness", "pages")


def column(page: Page, key: str) -> list[str]:
    return page.locator(f"#rows .{key}").all_text_contents()


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


def test_a_case_without_a_page_is_listed_and_not_linked(run_copy, watch):
    for path in (run_copy / "report/cases").glob(f"{PHANTOM}.*"):
        path.unlink()
    write_index(Run.reopen(str(run_copy)))
    page = open_index(watch(), run_copy)
    assert PHANTOM in names(page) and page.locator("#rows a").count() == 3


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


@pytest.mark.parametrize("width", [360, 414, 600, 910, 1100, 1280])
def test_every_column_can_be_reached_on_a_screen_of_any_width(run_folder, browser, width):
    context = browser.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    page.goto((run_folder / "report/index.html").as_uri())
    last = page.locator("#rows tr >> nth=0").locator("td:visible").last
    reached = """cell => {
        cell.scrollIntoView({ block: "center", inline: "end" });
        const { left, right, top, bottom } = cell.getBoundingClientRect();
        return cell.contains(document.elementFromPoint((left + right) / 2, (top + bottom) / 2));
    }"""
    page.wait_for_function(reached, arg=last.element_handle())  # a row is drawn a frame after it comes into sight
    assert last.text_content()
    context.close()


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

"""What pages may not do, and whom they shut out: names and answers are text, nothing is asked for, anyone can read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import axe_core_python
import pandas as pd
import pytest
from pages import (
    FORMULA,
    HEALTHY,
    HOSTILE,
    PHANTOM,
    names,
    open_case,
    open_index,
    wait_for_viewer,
    write_pages,
)
from playwright.sync_api import Error as PlaywrightError

from medad_core.media import file_name, visible
from medad_core.report.scripts import json_text
from medad_core.store import read_table

pytest_plugins = ("prefect_harness", "pages")


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

"""When the files of pages are written, kept and removed, and who can read them."""

from __future__ import annotations

import shutil

import pytest
from pages import (
    BROKEN,
    HEALTHY,
    HOSTILE,
    PHANTOM,
    write_pages,
)
from test_cli import medad

from medad_core.errors import StoreError
from medad_core.media import file_name
from medad_core.run.run import Run
from medad_core.stages.case_files import write_reports
from medad_core.stages.case_reports import CaseReporter, case_report_of
from medad_core.stages.evaluate import evaluate_run
from medad_core.stages.page import CasePages, write_index

pytest_plugins = ("prefect_harness", "pages")


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


def test_a_case_page_is_written_from_its_report_alone(run_copy):
    run = Run.reopen(str(run_copy))
    report = case_report_of(run, HOSTILE)
    assert not CasePages(run).write(report)
    assert CasePages(run).write(report.model_copy(update={"finding": "none"}))

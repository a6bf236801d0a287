"""`medad report` as a command and as a flow: what it prints, its exit codes, and its workers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_case_files import CASE, CUT, stored, times
from test_cli import expect_line, medad

from flows.report import report
from medad_core.config import load_settings

pytest_plugins = ("prefect_harness",)


@pytest.fixture(scope="module")
def reported(screened, tmp_path_factory) -> Path:
    """A copy of a finished run, with the reports of its cases."""
    run = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(screened.run, run)
    report(str(run), settings=screened.settings)
    return run


@pytest.fixture
def copied(reported, tmp_path) -> Path:
    return Path(shutil.copytree(reported, tmp_path / "run"))


def test_a_second_command_writes_nothing_and_names_the_rejected_case(reported, screened):
    before = times(reported)
    done = report(str(reported), settings=screened.settings)
    assert (done.written, done.unchanged) == (0, 3) and times(reported) == before
    ((case_id, reason),) = done.failed
    assert case_id == CUT and reason.startswith("rejected at the stage slices: ") and "truncated" in reason


def test_a_run_without_results_is_refused_in_one_line(copied):
    (copied / "cases.parquet").unlink()
    expect_line(medad("report", copied), 1, "cases.parquet", "medad evaluate")
    (copied / "answers" / "_manifest.json").unlink()
    expect_line(medad("report", copied), 1, "stage answers", "is not finished", "run the same command again")
    expect_line(medad("report", copied / "nothing"), 1, "is not a run of medad")


def test_screening_names_the_command_that_writes_the_reports(copied):
    assert f"medad report {copied}" in medad("evaluate", copied).stdout


def test_cases_that_the_command_names(copied):
    result = medad("report", copied, CASE, CUT, "--language", "ko")
    assert result.exit_code == 3 and "1 reports written, 0 unchanged" in result.stdout
    assert f"medad: {CUT} has no report: rejected at the stage slices" in result.stderr
    assert stored(copied).language == "ko" and stored(copied, "BraTS2021_00001").language == "en"
    result = medad("report", copied, CUT)
    assert result.exit_code == 1 and "0 reports written" in result.stdout
    expect_line(medad("report", copied, "nobody"), 2, "nobody", "no such case", "worklist.csv")
    expect_line(medad("report", copied, "--language", "fr"), 2, "--language fr", "en, de, ko")


def test_two_workers_write_what_one_writes(copied, screened):
    before = {path.name: path.read_bytes() for path in (copied / "reports").glob("*.[jm][sd]*")}
    shutil.rmtree(copied / "reports")
    done = report(str(copied), settings=load_settings(None, [*screened.words, "flow.max_workers=2"]))
    assert done.written == 3 and before
    assert {name: (copied / "reports" / name).read_bytes() for name in before} == before

"""The command line: exit codes, and one clear line for what is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect_harness import WORDS, break_case, write_case
from typer.testing import CliRunner

from flows.cli.app import app
from medad_core.models.weights import weights_folder

pytest_plugins = ("prefect_harness",)
pytestmark = pytest.mark.usefixtures("untouched")
CLI = [sys.executable, "-m", "flows.cli"]


def medad(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def expect_line(result, code: int, *texts: str) -> None:
    """The exit code, and one line on stderr that holds the texts."""
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("medad:")]
    assert len(lines) == 1 and "Traceback" not in result.output, result.output
    for text in texts:
        assert text in lines[0], lines[0]


def test_help_answers_in_under_a_second_and_imports_nothing_heavy():
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        assert "screen" in subprocess.run([*CLI, "--help"], capture_output=True, text=True, check=True).stdout
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1
    heavy = {"torch", "prefect", "vllm", "pyarrow", "numpy", "pydantic"}
    code = f"import sys, flows.cli.app; print({heavy} & set(sys.modules))"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert imported.strip() == "set()"


def test_finished_with_rejected_cases_is_3_and_names_the_results(screened):
    result = medad("screen", screened.data, "--out", screened.run, *screened.words)
    expect_line(result, 3, "1 cases could not be used", "rejected.csv")
    for text in ("predictions.parquet", "metrics.md", "report.html"):
        assert text in result.stdout
    assert "Verdict, balanced accuracy" in result.stdout
    assert "9 slices of 3 cases" in result.stdout


def test_evaluation_again_follows_only_its_own_settings(screened, tmp_path):
    run = shutil.copytree(screened.run, tmp_path / "run")
    assert medad("evaluate", run, "evaluate.bootstrap=0").exit_code == 3
    expect_line(medad("evaluate", run, "data.first_slice=61"), 2, "data.first_slice=61", "--out")
    expect_line(medad("evaluate", run, "evaluate.botstrap=3"), 2, "did you mean evaluate.bootstrap?")


def test_status_reads_the_files_of_a_run(screened):
    result = medad("status", screened.run)
    assert result.exit_code == 0
    assert "finished" in result.stdout and "4 of 4" in result.stdout


def test_all_done_is_0(server, tmp_path):
    write_case(tmp_path / "data", "BraTS2021_00007", seed=7)
    assert medad("screen", tmp_path / "data", "--out", tmp_path / "run", *WORDS).exit_code == 0


def test_no_usable_case_is_1(server, tmp_path):
    write_case(tmp_path / "data", "BraTS2021_00007", seed=7)
    break_case(tmp_path / "data", "BraTS2021_00007")
    result = medad("screen", tmp_path / "data", "--out", tmp_path / "run", *WORDS)
    expect_line(result, 1, "none of the 1 cases could be used", "rejected.csv")
    assert "BraTS2021_00007" in (tmp_path / "run" / "rejected.csv").read_text()


def test_unknown_key_is_2_and_names_the_nearest(tiny_cohort, tmp_path):
    expect_line(
        medad("screen", tiny_cohort, "--out", tmp_path / "run", "data.modalty=t2"), 2, "did you mean data.modality?"
    )
    assert not (tmp_path / "run").exists()


def test_a_file_instead_of_a_folder_is_2(tmp_path):
    (tmp_path / "file").write_text("x")
    expect_line(medad("screen", tmp_path / "file", "--out", tmp_path / "run"), 2, str(tmp_path / "file"))
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_is_2(tmp_path):
    (tmp_path / "empty").mkdir()
    expect_line(medad("screen", tmp_path / "empty", "--out", tmp_path / "run"), 2, "empty")


def test_an_output_that_cannot_be_written_is_2(tiny_cohort, tmp_path):
    (tmp_path / "file").write_text("x")
    expect_line(medad("screen", tiny_cohort, "--out", tmp_path / "file" / "run"), 2, "choose another output folder")


def test_weights_of_another_model_are_1_before_any_work(tiny_cohort, tmp_path):
    from safetensors.torch import load_file, save_file

    source = weights_folder("embedded")
    shutil.copy(source / "converter.safetensors", tmp_path)
    save_file(
        load_file(source / "decoder.safetensors"),
        tmp_path / "decoder.safetensors",
        metadata={"fits": '{"encoder_sha256": "of another"}'},
    )
    result = medad("screen", tiny_cohort, "--out", tmp_path / "run", f"models.weights={tmp_path}")
    expect_line(result, 1, "weights of another model", "encoder_sha256")
    assert not (tmp_path / "run" / "slices").exists()


def test_a_missing_argument_is_2():
    assert medad("screen").exit_code == 2
    assert medad("screen", "data").exit_code == 2


def test_a_folder_that_is_no_run_is_1(tmp_path):
    expect_line(medad("status", tmp_path), 1, "is not a run of medad")
    expect_line(medad("evaluate", tmp_path), 1, "is not a run of medad")


def test_an_interruption_is_130(tiny_cohort, tmp_path, monkeypatch):
    import flows.orchestrator

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(flows.orchestrator, "check_orchestration", interrupt)
    expect_line(medad("screen", tiny_cohort, "--out", tmp_path / "run"), 130, "interrupted")


def test_models_and_doctor_list_what_is_installed():
    listed = medad("models")
    assert listed.exit_code == 0 and "Apache-2.0" in listed.stdout
    examined = medad("doctor")
    assert examined.exit_code == 0, examined.stdout
    assert "screening can run" in examined.stdout


def test_phantoms_can_be_screened_cases(tmp_path):
    from medad_core.data.discovery import discover

    assert medad("phantom", tmp_path / "cohort", "--cases", 1, "--seed", 3).exit_code == 0
    assert len(discover(tmp_path / "cohort").cases) == 1


def test_results_do_not_depend_on_the_folder_the_command_runs_in(screened, tmp_path):
    done = subprocess.run(
        [*CLI, "status", os.path.relpath(screened.run, tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

"""Where nothing is left to do, nothing is done: no server, no model, no evaluation; and where something is, it is."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prefect_harness import WORDS, settle, write_case
from typer.testing import CliRunner

from flows.cli.app import app
from flows.orchestrator import SETTINGS_OF_SERVER, has_prefect_settings, server_url
from medad_core.benchmark.trace import trace_of
from medad_core.config import load_settings
from medad_core.run.evaluated import find_evaluated
from medad_core.run.run import Run
from medad_core.stages.case_files import write_reports
from medad_core.stages.evaluate import evaluate_run
from medad_core.stages.page import write_index
from medad_core.stages.screen import screen

pytest_plugins = ("prefect_harness",)
SETTINGS = load_settings(None, WORDS)
HEAVY = ("transformers", "vllm", "prefect")
LIGHT = (*HEAVY, "torch", "pandas", "nibabel", "scipy", "pyarrow.compute")  # what `medad status` need not import either
ROOT = Path(__file__).parents[1]
COMMAND = f"""
import sys
from flows.cli.app import app
try:
    app(sys.argv[1:])
finally:
    print("imported", [name for name in {LIGHT} if name in sys.modules])
"""


def medad(home: Path, *words: object) -> subprocess.CompletedProcess:
    """The command in a process of its own, in the empty folder `home`, where Prefect has no settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-c", COMMAND, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=home)


def imported(done: subprocess.CompletedProcess) -> set[str]:
    """The packages of LIGHT that a command imported."""
    line = next(line for line in done.stdout.splitlines() if line.startswith("imported "))
    return set(ast.literal_eval(line.removeprefix("imported ")))


@pytest.fixture(scope="module")
def finished(tiny_cohort, tmp_path_factory) -> Path:
    """A finished run of three good cases and a truncated one."""
    run = tmp_path_factory.mktemp("finished") / "run"
    settle()
    screen(str(tiny_cohort), str(run), SETTINGS)
    return run


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy, evaluated where it lies."""
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    evaluate_run(Run.reopen(str(copy)))
    return copy


def results(folder: Path) -> dict[str, int]:
    others = {"run.json", "rejected.csv", "warnings.csv"}  # of every command
    files = [path for path in folder.iterdir() if path.is_file() and path.name not in others]
    return {path.name: path.stat().st_mtime_ns for path in files if not path.name.startswith(".")}


def test_a_finished_run_imports_no_prefect_and_loads_no_model(finished, tiny_cohort, tmp_path):
    before = results(finished)
    (finished / "rejected.csv").unlink()
    done = medad(tmp_path, "screen", tiny_cohort, "--out", finished, *WORDS)
    assert done.returncode == 3 and not imported(done) & set(HEAVY), done.stdout + done.stderr
    assert "9 slices of 3 cases; 1 cases rejected" in done.stdout and "Verdict, balanced accuracy" in done.stdout
    assert results(finished) == before and "BraTS2021_00002" in (finished / "rejected.csv").read_text()


def test_where_a_run_stands_is_said_without_what_computes(finished, tmp_path):
    done = medad(tmp_path, "status", finished)
    assert done.returncode == 0 and imported(done) == set(), done.stdout + done.stderr


@pytest.mark.parametrize("name", ["PREFECT_API_URL", "PREFECT_PROFILE", "prefect_api_url"])
def test_prefect_is_asked_for_its_settings_where_there_may_be_some(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    for other in SETTINGS_OF_SERVER:
        monkeypatch.delenv(other, raising=False)
    for module in [module for module in sys.modules if module == "prefect"]:
        monkeypatch.delitem(sys.modules, module)
    assert not has_prefect_settings() and server_url() is None
    monkeypatch.setenv(name, "http://127.0.0.1:4200/api")
    assert has_prefect_settings()
    monkeypatch.delenv(name)
    for file in ("profiles.toml", ".env", "prefect.toml", "pyproject.toml"):
        (tmp_path / file).touch()
        assert has_prefect_settings()
        (tmp_path / file).unlink()


def test_an_inbox_without_news_imports_no_prefect_and_loads_no_model(tmp_path, server):
    write_case(tmp_path / "inbox", "BraTS2021_00000", seed=0)
    words = ["screen", tmp_path / "inbox", "--cohort", tmp_path / "cohort", *WORDS, "inbox.settle_s=0"]
    first = CliRunner(env={"PREFECT_API_URL": server}).invoke(app, [str(word) for word in words])
    assert first.exit_code == 0 and "batch 1: 1 cases screened" in first.stdout, first.output
    (tmp_path / "home").mkdir()
    again = medad(tmp_path / "home", *words)
    assert again.returncode == 0 and "nothing new" in again.stdout, again.stdout + again.stderr
    assert not imported(again) & {"prefect", "vllm"}, again.stdout
    assert "1 cases in the cohort" in again.stdout


def test_results_that_are_not_those_of_the_run_are_made_again(run):
    opened = Run.reopen(str(run))
    assert find_evaluated(opened).slices == 9
    (run / "metrics.md").unlink()
    assert find_evaluated(opened) is None
    evaluate_run(opened)
    assert find_evaluated(opened) is not None
    with open(run / "predictions.parquet", "ab") as stream:
        stream.write(b"edited")
    assert find_evaluated(opened) is None
    evaluate_run(opened)
    changed = load_settings(None, [*WORDS, "evaluate.map_threshold=0.4"])
    assert find_evaluated(Run.reopen(str(run), changed)) is None
    record = (run / "_evaluated.json").read_bytes()
    (run / "_evaluated.json").write_bytes(record.replace(b'"cases": 3', b'"cases": 4'))
    assert find_evaluated(opened) is None


def test_a_run_without_its_prompts_is_evaluated_and_found_evaluated(run):
    shutil.rmtree(run / "prompts")  # no result is computed from them
    opened = Run.reopen(str(run))
    (run / "metrics.md").unlink()
    assert evaluate_run(opened).slices == 9 and find_evaluated(Run.reopen(str(run))) is not None


def test_a_server_that_is_not_needed_after_all_leaves_no_process():
    code = """
import psutil
from flows.cli.server import temporary_server
with temporary_server(soon=True):
    pass
psutil.wait_procs(psutil.Process().children(recursive=True), timeout=20)
print("left", [child.cmdline() for child in psutil.Process().children(recursive=True)])
"""
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "left []" in done.stdout, done.stdout + done.stderr


def test_a_part_that_is_lost_makes_a_run_unfinished(run):
    next((run / "maps").glob("part-*.parquet")).unlink()
    assert find_evaluated(Run.reopen(str(run))) is None


def test_the_link_to_the_pages_leaves_the_results_as_they_are(run):
    opened = Run.reopen(str(run))
    write_reports(opened, ["BraTS2021_00000"])
    before = (run / "report.html").read_text()
    write_index(opened)
    assert (run / "report.html").read_text() != before and find_evaluated(Run.reopen(str(run))) is not None


def test_the_timeline_of_a_run_has_every_part_in_its_stage(run):
    import json

    events = json.loads(trace_of(Run.reopen(str(run))))["traceEvents"]
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert list(lanes.values()) == ["slices", "maps", "prompts", "answers", "results"]
    spans = [event for event in events if event["ph"] == "X"]
    parts = len(Run.reopen(str(run)).stage("maps").plan().parts)
    for lane, name in list(lanes.items())[:4]:
        own = [span for span in spans if span["tid"] == lane]
        assert [span["name"] for span in own] == [name, *(f"part {number}" for number in range(parts))]
    assert all(span["dur"] >= 0 and span["ts"] >= 0 for span in spans)

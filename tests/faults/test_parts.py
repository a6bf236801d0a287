"""A part that cannot be made, a worker that dies, and an engine that breaks down: what is lost, and what goes on."""

from __future__ import annotations

import csv
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from disturbed import ends, gone, screening, start, temporary_files, until

from flows.executor import range_count
from flows.stages import maps
from medad_core.config import FlowSettings, Settings, load_settings
from medad_core.errors import (
    EngineError,
    EngineStartError,
    MedadError,
)
from medad_core.faults.classify import can_heal
from medad_core.faults.suspect import Suspect, accuse
from medad_core.llm.transformers_engine import TransformersEngine
from medad_core.run.rejected import QUARANTINED
from medad_core.run.run import Run
from medad_core.stages import answers
from medad_core.stages import maps as maps_stage
from medad_core.stages.parts import ignore_part
from medad_core.store import PART_STAGES, stage_of

pytest_plugins = ("prefect_harness",)
CASE = "BraTS2021_00001"


def test_one_worker_loads_its_models_once_a_stage():
    assert range_count(FlowSettings()) == 1
    assert range_count(FlowSettings(max_workers=2)) == 6


# --- real runs -------------------------------------------------------------------------------------------------------


def test_a_poisoned_part_is_quarantined_and_the_rest_goes_on(screened, server, tmp_path):
    run = tmp_path / "run"
    output = ends(start(screening(screened, run), ("raise", CASE), server), 3)
    assert "slices part 1 is quarantined" in output
    with open(run / "rejected.csv") as file:
        reasons = {row["case_id"]: row["reason"] for row in csv.DictReader(file)}
    assert reasons[CASE] == "quarantined after 2 attempts: RuntimeError: poisoned"
    assert not reasons["BraTS2021_00002"].startswith(QUARANTINED), "a case that is broken itself is no quarantined part"
    for name in PART_STAGES:
        manifest = stage_of(str(run), name).require_finished()
        assert manifest.requested == manifest.done + len(manifest.skipped) + len(manifest.failed)
    expected = (
        pd.read_parquet(screened.outcome.predictions)
        .query("case_id != @CASE")
        .drop(columns="model_fingerprint")
        .reset_index(drop=True)
    )
    pd.testing.assert_frame_equal(
        pd.read_parquet(run / "predictions.parquet").drop(columns="model_fingerprint"), expected
    )
    assert temporary_files(run) == []


def test_a_part_that_kills_the_run_itself_is_quarantined_by_the_next_command(screened, server, tmp_path):
    run = tmp_path / "run"
    ends(start(screening(screened, run), ("die", CASE), server), -signal.SIGKILL)
    output = ends(start(screening(screened, run), ("die", CASE), server), 3)
    assert "a process ended in the middle of slices part 1" in output
    rejected = (run / "rejected.csv").read_text()
    assert f"{CASE},slices,quarantined after 2 attempts: its worker process died" in rejected
    assert set(pd.read_parquet(run / "predictions.parquet")["case_id"]) == {"BraTS2021_00000", "BraTS2021_00003"}
    assert temporary_files(run) == [] and not list(run.rglob("*.begun"))


def without_maps(screened, run: Path) -> str:
    shutil.copytree(screened.run, run)
    for name in ("maps", "prompts", "answers"):
        shutil.rmtree(run / name)
    return str(run)


def test_a_machine_that_breaks_down_near_the_end_stops_the_run_and_quarantines_nothing(screened, tmp_path, monkeypatch):
    run, rows, calls = without_maps(screened, tmp_path / "run"), maps_stage._rows, []

    def breaking(*args):
        calls.append(1)
        if len(calls) > 2:
            raise MemoryError
        return rows(*args)

    monkeypatch.setattr(maps_stage, "_rows", breaking)
    with pytest.raises(Suspect):
        maps(run, screened.settings)
    assert not any(record.failed for record in stage_of(run, "maps").records().values())
    monkeypatch.undo()
    assert maps(run, screened.settings).finished
    assert stage_of(run, "maps").read().equals(stage_of(screened.run, "maps").read())


def test_the_last_part_is_quarantined_once_a_good_one_was_made_again(screened, tmp_path, monkeypatch, caplog):
    run, rows = without_maps(screened, tmp_path / "run"), maps_stage._rows

    def poisoned(case_id, *args):
        if case_id == "BraTS2021_00003":
            raise MemoryError
        return rows(case_id, *args)

    monkeypatch.setattr(maps_stage, "_rows", poisoned)
    maps(run, screened.settings)
    assert "maps part 1 is made again" in caplog.text
    stage = stage_of(run, "maps")
    assert [item.key for record in stage.records().values() for item in record.failed] == ["BraTS2021_00003"]
    undisturbed = stage_of(screened.run, "maps")
    assert all(
        stage.read_case(case_id).equals(undisturbed.read_case(case_id))
        for case_id in ("BraTS2021_00000", "BraTS2021_00001")
    )


def only_slices(screened, run: Path) -> list:
    run.mkdir()
    shutil.copy(Path(screened.run) / "cohort.json", run)
    return ["slices", run, *screened.words, "flow.runner=process", "flow.max_workers=2"]


def test_a_part_that_kills_its_worker_is_quarantined_and_the_rest_goes_on(screened, server, tmp_path):
    run = tmp_path / "run"
    ends(start(only_slices(screened, run), ("die", CASE), server), 0)
    slices, undisturbed = stage_of(str(run), "slices"), stage_of(screened.run, "slices")
    reasons = {item.key: item.reason for item in slices.require_finished().failed}
    assert reasons[CASE] == "quarantined after 3 attempts: its worker process died"
    for case_id in ("BraTS2021_00000", "BraTS2021_00003"):
        assert slices.read_case(case_id).equals(undisturbed.read_case(case_id))
    assert reasons["BraTS2021_00002"] == undisturbed.manifest().failed[0].reason
    assert temporary_files(run) == []


def test_a_worker_that_is_killed_in_the_middle_of_a_part_costs_no_row(screened, server, tmp_path):
    run, held = tmp_path / "run", tmp_path / "held"
    process = start(only_slices(screened, run), ("hold", CASE, held), server)
    until(lambda: held.exists() and held.read_text() != "", process)
    os.kill(int(held.read_text()), signal.SIGKILL)
    assert "a worker process of slices died" in ends(process, 0)
    assert stage_of(str(run), "slices").read().equals(stage_of(screened.run, "slices").read())
    assert temporary_files(run) == []


def test_a_worker_killed_while_it_writes_to_the_pools_queue_does_not_keep_the_command_from_ending():
    # Such a worker takes the queue's lock with it, one time in ten or so; here the lock is taken for sure.
    program = """
from prefect.task_runners import ProcessPoolTaskRunner
from flows.executor import interruptible
with interruptible(ProcessPoolTaskRunner(max_workers=1)) as runner:
    runner._subprocess_message_queue._wlock.acquire()
"""
    subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        timeout=60,
        check=True,
    )


def test_workers_end_with_a_command_that_is_killed(screened, server, tmp_path):
    import psutil

    run, held = tmp_path / "run", tmp_path / "held"
    process = start(only_slices(screened, run), ("hold", CASE, held), server)
    until(lambda: held.exists() and held.read_text() != "", process)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    until(lambda: gone(workers), deadline_s=10)


def test_a_fault_of_every_part_stops_the_run_and_quarantines_nothing(screened, tmp_path, monkeypatch):
    run = without_maps(screened, tmp_path / "run")

    def broken(*_):
        raise ValueError("of every part")

    monkeypatch.setattr(maps_stage, "_rows", broken)
    with pytest.raises(MedadError, match="maps part 0: ValueError: of every part"):
        maps(run, screened.settings)
    assert not any(record.failed for record in stage_of(run, "maps").records().values())
    monkeypatch.undo()
    assert maps(run, screened.settings).finished
    assert stage_of(run, "maps").read().equals(stage_of(screened.run, "maps").read())


# --- the engine ------------------------------------------------------------------------------------------------------


class Failing(TransformersEngine):
    """The real engine, which breaks down at the calls named, counted over all its lives."""

    calls, lives, at = 0, 0, ()

    def __init__(self, *args, **kwargs) -> None:
        type(self).lives += 1
        super().__init__(*args, **kwargs)

    def generate(self, prompts, sentences=()):
        type(self).calls += 1
        if self.calls in self.at:
            self.model = None  # what comes next is the engine's own failure, half-way through its work
        return super().generate(prompts, sentences)


@pytest.fixture
def failing(monkeypatch):
    import medad_core.llm.transformers_engine as module

    class Counted(Failing):
        pass

    monkeypatch.setattr(module, "TransformersEngine", Counted)
    return Counted


def make_pending(uri: str, settings: Settings, on_part=ignore_part) -> None:
    run = Run.reopen(uri, settings)
    answers.run_parts(run, run.stage("answers").pending(), on_part)


@pytest.fixture
def unanswered(screened, tmp_path) -> str:
    run = str(shutil.copytree(screened.run, tmp_path / "run"))
    shutil.rmtree(Path(run) / "answers")
    answers.plan(Run.reopen(run, screened.settings))
    return run


def test_an_engine_that_breaks_down_is_started_anew_and_answers_the_part_again(screened, unanswered, failing, caplog):
    failing.at = (2,)
    make_pending(unanswered, screened.settings)
    assert (failing.lives, failing.calls) == (2, 4), "three parts, one of them asked twice"
    assert stage_of(unanswered, "answers").read().equals(stage_of(screened.run, "answers").read())
    assert "started anew" in caplog.text
    assert "AttributeError" in (Path(unanswered) / "answers" / "engine.log").read_text()


def test_an_engine_whose_process_is_killed_is_started_anew(screened, unanswered, caplog):
    def kill_once(_):
        if "started anew" not in caplog.text:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    settings = load_settings(None, [*screened.words, "llm.data_parallel_size=2"])
    make_pending(unanswered, settings, kill_once)
    assert caplog.text.count("started anew") == 1
    rows, undisturbed = (stage_of(run, "answers").read() for run in (unanswered, screened.run))
    assert rows.drop_columns("p_yes").equals(undisturbed.drop_columns("p_yes"))
    assert rows["p_yes"].to_pylist() == pytest.approx(undisturbed["p_yes"].to_pylist(), abs=1e-5), (
        "copies have batches of other sizes"
    )
    assert "a process of the LLM ended by itself" in (Path(unanswered) / "answers" / "engine.log").read_text()


def test_an_engine_that_breaks_down_again_fails_with_its_error_and_its_log(screened, unanswered, failing):
    failing.at = (2, 3)
    with pytest.raises(
        EngineError,
        match=r"broke down again after it was started anew \(AttributeError: .*\); its log is .*answers/engine.log",
    ):
        make_pending(unanswered, screened.settings)
    assert (Path(unanswered) / "answers" / "engine.log").read_text().count("Traceback") == 2
    assert list(stage_of(unanswered, "answers").records()) == [0]


def test_an_engine_that_cannot_be_opened_at_all_is_no_fault_of_a_part(screened, unanswered, monkeypatch):
    def start(*_):
        raise RuntimeError("no memory for the cache")

    monkeypatch.setattr(answers, "open_engine", start)
    with pytest.raises(EngineStartError, match="could not be started") as raised:
        make_pending(unanswered, screened.settings)
    assert accuse(raised.value, attempts=1) is raised.value and not can_heal(raised.value)

"""Flows and tasks on real models, a real server and tiny volumes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import get_client
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Cancelling
from test_cli import expect_line, medad

from flows import stages
from flows.orchestrator import check_orchestration, check_runner
from flows.screen import screen
from flows.stages import evaluate_run, maps, slices
from medad_core.config import FlowSettings, Settings, load_settings
from medad_core.errors import ConfigError, StoreError, UsageError
from medad_core.faults.classify import can_heal
from medad_core.llm.transformers_engine import TransformersEngine
from medad_core.models.converter import Converter
from medad_core.models.decoder import Decoder
from medad_core.models.encoder import VisionTransformerEncoder
from medad_core.stages import maps as maps_stage
from medad_core.stages.complete import ranges_of
from medad_core.store import PART_STAGES, stage_of

pytest_plugins = ("prefect_harness",)


@pytest.fixture
def calls(monkeypatch) -> dict[str, int]:
    """Counts every forward pass of every model, and every model that is loaded."""
    counts: dict[str, int] = {}

    def count(owner: type, method: str, name: str) -> None:
        original = getattr(owner, method)

        def counted(*args, **kwargs):
            counts[name] = counts.get(name, 0) + 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, method, counted)

    count(VisionTransformerEncoder, "encode", "encoder")
    count(VisionTransformerEncoder, "__init__", "encoder loaded")
    count(Decoder, "forward", "decoder")
    count(Converter, "forward", "converter")
    count(Converter, "knowledge_tokens", "knowledge")
    count(TransformersEngine, "generate", "llm")
    count(TransformersEngine, "__init__", "llm loaded")
    return counts


@pytest.fixture
def copied(screened, tmp_path):
    """A finished run that a test may damage."""
    run = tmp_path / "run"
    shutil.copytree(screened.run, run)
    return str(run)


def test_screening_gives_a_prediction_for_every_slice_of_every_good_case(screened):
    predictions = pd.read_parquet(screened.outcome.predictions)
    assert predictions.groupby("case_id")["slice_index"].apply(list).to_dict() == {
        f"BraTS2021_{number:05d}": [60, 61, 62] for number in (0, 1, 3)
    }
    assert predictions["p_yes"].between(0, 1).all() and predictions["anomaly_score"].between(0, 1).all()
    for file in (screened.outcome.metrics, screened.outcome.page):
        assert Path(file).stat().st_size > 1000


def test_a_truncated_case_is_rejected_with_its_reason_and_the_others_go_on(screened):
    (row,) = screened.outcome.rejected
    assert row[0] == "BraTS2021_00002" and row[2]
    assert "BraTS2021_00002" in (Path(screened.run) / "rejected.csv").read_text()


def test_every_case_of_every_stage_is_accounted_for(screened):
    for name in PART_STAGES:
        manifest = stage_of(screened.run, name).manifest()
        assert manifest.requested == manifest.done + len(manifest.skipped) + len(manifest.failed)
        assert manifest.done == 3


def test_second_run_of_a_finished_run_makes_no_forward_pass_and_loads_no_model(screened, calls):
    before = pd.read_parquet(screened.outcome.predictions)
    outcome = screen(screened.data, screened.run, screened.settings)
    assert calls == {}
    pd.testing.assert_frame_equal(pd.read_parquet(outcome.predictions), before)


def test_a_lost_part_is_made_again_and_only_that_part(screened, copied, calls):
    (Path(copied) / "maps" / "part-00001.parquet").unlink()
    before = stage_of(screened.run, "maps").read()
    screen(screened.data, copied, screened.settings)
    assert calls == {"encoder": 1, "encoder loaded": 1, "decoder": 1}
    assert stage_of(copied, "maps").read().equals(before)


def test_a_flow_fails_when_one_of_its_tasks_fails_and_the_next_run_goes_on(screened, copied, monkeypatch):
    (Path(copied) / "maps" / "part-00001.parquet").unlink()
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="broken on purpose"):
        patch.setattr(maps_stage, "run_parts", _raising(ValueError("broken on purpose"), times=9))
        maps(copied, screened.settings)
    assert not stage_of(copied, "maps").is_finished()
    assert maps(copied, screened.settings).finished


def test_a_task_is_tried_again_only_where_that_can_help(screened, copied, monkeypatch):
    (Path(copied) / "maps" / "part-00001.parquet").unlink()
    stutter = _raising(TimeoutError("the disk was slow"), times=1)
    monkeypatch.setattr(maps_stage, "run_parts", stutter)
    assert maps(copied, screened.settings).finished
    assert stutter.calls == 2
    (Path(copied) / "maps" / "part-00001.parquet").unlink()
    wrong = _raising(ConfigError("a wrong key"), times=9)
    monkeypatch.setattr(maps_stage, "run_parts", wrong)
    with pytest.raises(ConfigError):
        maps(copied, screened.settings)
    assert wrong.calls == 1


def _raising(error: Exception, times: int, original=maps_stage.run_parts):
    def run_parts(*args, **kwargs):
        run_parts.calls += 1
        if run_parts.calls <= times:
            raise error
        return original(*args, **kwargs)

    run_parts.calls = 0
    return run_parts


def test_a_changed_setting_is_refused_in_a_finished_run_naming_the_field(screened, copied):
    settings = load_settings(None, [*screened.words, "data.last_slice=63"])
    before = (Path(copied) / "run.json").read_bytes()
    with pytest.raises(StoreError, match=r"data\.last_slice"):
        screen(screened.data, copied, settings)
    assert (Path(copied) / "run.json").read_bytes() == before, (
        "a command that was refused changed what the run says of itself"
    )


def test_processes_give_the_rows_that_threads_give(screened, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(Path(screened.run) / "cohort.json", run)
    settings = load_settings(None, [*screened.words, "flow.runner=process", "flow.max_workers=2"])
    assert slices(str(run), settings).finished
    assert stage_of(str(run), "slices").read().equals(stage_of(screened.run, "slices").read())


def test_workers_of_other_processes_are_refused_without_a_server_before_anything_runs():
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(UsageError, match=r"flow\.runner: process needs a Prefect server"),
    ):
        check_runner(FlowSettings(runner="process"))


@pytest.mark.parametrize(("state", "where"), [(Cancelling, "evaluate"), (Cancelled, "evaluate"), (Cancelled, "screen")])
def test_a_run_that_somebody_cancels_is_no_success(screened, copied, monkeypatch, state, where):
    """Somebody cancels the flow run of the evaluation, or the one around it, in the middle of the evaluation."""
    seen = []

    def evaluate_while_somebody_cancels(run):
        with get_client(sync_client=True) as client:
            own = client.read_flow_run(FlowRunContext.get().flow_run.id)
            outer = client.read_task_run(own.parent_task_run_id).flow_run_id
            seen[:] = [own.id, outer]
            client.set_flow_run_state({"evaluate": own.id, "screen": outer}[where], state())
        return evaluate_run(run)

    monkeypatch.setattr(stages, "evaluate_run", evaluate_while_somebody_cancels)
    result = medad("screen", screened.data, "--out", copied, *screened.words)
    expect_line(result, 1, "was cancelled on the server; the same command goes on where it stopped")
    with get_client(sync_client=True) as client:
        own, outer = (client.read_flow_run(run).state for run in seen)
    assert outer.is_cancelled() and own.is_cancelled() is (where == "evaluate")


def test_a_server_that_does_not_answer_is_named_before_the_run(screened):
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(UsageError, match="no Prefect server answers"),
    ):
        check_orchestration(screened.settings)


@given(st.lists(st.integers(0, 10**6), unique=True, max_size=40).map(sorted), st.integers(1, 12))
def test_ranges_hold_every_part_once_in_order_and_nearly_evenly(numbers, count):
    ranges = ranges_of(numbers, count)
    assert [number for part in ranges for number in part] == numbers
    assert len(ranges) <= count and all(ranges)
    assert not ranges or max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_only_what_may_pass_by_itself_can_heal():
    disk = StoreError("cannot write")
    disk.__cause__ = OSError(5, "Input/output error")
    assert can_heal(disk) and can_heal(ConnectionResetError())
    for error in (
        StoreError("another fingerprint"),
        UsageError("wrong"),
        FileNotFoundError(),
        PermissionError(),
        ValueError(),
    ):
        assert not can_heal(error)


def test_settings_that_an_earlier_deployment_holds_as_text_are_read():
    from flows.cohort import screen_cohort  # where it looks for the flow

    given = {"inbox": "in", "cohort": "out"}
    assert screen_cohort.validate_parameters({**given, "settings": ""})["settings"] == Settings()
    read = screen_cohort.validate_parameters({**given, "settings": "data: {last_slice: 91}"})["settings"]
    assert read.data.last_slice == 91
    mapping = screen_cohort.validate_parameters({**given, "settings": {"data": {"last_slice": 92}}})["settings"]
    assert mapping.data.last_slice == 92
    with pytest.raises(Exception, match="last_slide"):
        screen_cohort.validate_parameters({**given, "settings": "data: {last_slide: 91}"})

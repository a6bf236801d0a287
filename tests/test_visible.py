"""What a run shows on a real server: progress, summary, link, tags, logs; and that none of it can hurt the run."""

from __future__ import annotations

import contextvars
import shutil
import threading
import time
from pathlib import Path

import pytest
from prefect import flow, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterName,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.settings import (
    PREFECT_API_DATABASE_CONNECTION_URL,
    PREFECT_API_URL,
    PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW,
    temporary_settings,
)
from prefect_harness import WORDS, Screened
from sqlalchemy import make_url
from test_notify import Hook

from flows import artifacts as artifacts_module
from flows import courtesy, finished, outcome
from flows.artifacts import kind_of, progress_line, progress_shown
from flows.gpu import LIMIT, gpu_slot
from flows.outcome import outcome_reported
from flows.screen import screen
from flows.stages import maps
from medad_core.config import Settings, load_settings
from medad_core.errors import StoreError, UsageError
from medad_core.store import PART_STAGES, StageProgress, stage_of
from medad_core.store.files import name_parts

pytest_plugins = ("prefect_harness",)


@pytest.fixture(scope="module")
def shown(server, tiny_cohort, tmp_path_factory) -> Screened:
    """A run and a cohort whose names no other test has: they all share the server."""
    folder = tmp_path_factory.mktemp("visible")
    data, run = shutil.copytree(tiny_cohort, folder / "seen"), folder / "visible"
    settings = load_settings(None, WORDS)
    return Screened(str(data), str(run), WORDS, screen(str(data), str(run), settings))


def artifacts(key: str) -> list:
    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))


def runs(name: str) -> list:
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(like_=name)))


def test_every_stage_has_a_progress_artifact_that_ends_at_the_whole(shown):
    for name in PART_STAGES:
        (found, *_) = artifacts(f"{name}-visible")
        assert found.type == "progress" and found.data == 100
    (slices, *_) = artifacts("slices-visible")
    assert slices.description == "4 of 4 parts, 4 of 4 cases (1 rejected), 9 slices; done"


def test_the_summary_has_metrics_rejected_cases_by_reason_and_a_link_to_the_page(shown):
    (found, *_) = artifacts("summary-visible")
    assert found.type == "markdown"
    for text in (
        "3 cases, 9 slices, 1 rejected",
        "| Map, AUROC | image |",
        "| 1 | slices | truncated |",
        "BraTS2021_00002",
        Path(shown.outcome.page).as_uri(),
    ):
        assert text in found.data, found.data
    (link, *_) = artifacts("page-visible")
    assert Path(shown.outcome.page).as_uri() in link.data


def test_runs_are_named_and_tagged_by_cohort(shown):
    (whole,) = runs("screen-seen")
    assert {"medad", "cohort:visible"} <= set(whole.tags)
    (stage, *_) = runs("maps-visible")
    assert "cohort:visible" in stage.tags
    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[stage.id])))
    assert tasks and not any(task.tags for task in tasks), "a tag of a task is a slot that the server has to give"


def test_what_the_core_logs_is_in_the_log_of_the_run(shown):
    (stage, *_) = runs("slices-visible")
    with get_client(sync_client=True) as client:
        said = [log.message for log in client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[stage.id])))]
    assert any("BraTS2021_00002 is left out" in line for line in said), said


@flow(name="screen-cohort")
def ending(settings: dict, fails: bool = False) -> None:
    with outcome_reported("screen-cohort", "ward", Settings.model_validate(settings)) as report:
        report.counts = {"cases_screened": 2}
        if fails:
            raise ValueError("/data/BraTS2021_00000 is damaged")


@pytest.mark.parametrize("fails", [False, True])
def test_the_webhook_is_given_how_a_flow_ended_and_only_numbers(server, fails):
    with Hook(200) as hook:
        state = ending({"notify": {"webhook": hook.url}}, fails, return_state=True)
    assert state.is_failed() == fails
    (body,) = hook.bodies
    assert body.pop("seconds") >= 0
    assert body == {
        "event": "failed" if fails else "finished",
        "kind": "screen-cohort",
        "name": "ward",
        "counts": {"cases_screened": 2},
    }


def test_the_webhooks_address_reaches_no_server_no_task_and_no_note_of_the_run(server, tiny_cohort, tmp_path):
    secret = "t0k3n-that-nobody-may-see"
    with Hook(200) as hook:
        settings = load_settings(None, [*WORDS, f"notify.webhook={hook.url}/{secret}"])
        run = tmp_path / "run"
        screen(str(tiny_cohort), str(run), settings)
    assert len(hook.bodies) == 1, "the address was used"
    database = make_url(PREFECT_API_DATABASE_CONNECTION_URL.value()).database
    files = [
        *Path(database).parent.glob(f"{Path(database).name}*"),
        *(file for file in run.rglob("*") if file.is_file()),
    ]
    assert len(files) > 10
    leaks = [file for file in files if secret.encode() in file.read_bytes()]
    assert leaks == []
    assert b"BraTS2021_00002" in Path(database).read_bytes(), "the server's database is the one that is looked into"


def test_what_fails_before_a_flow_begins_is_reported_and_wrong_usage_is_not():
    with Hook(200) as hook:
        settings = Settings.model_validate({"notify": {"webhook": hook.url}})
        with pytest.raises(StoreError), finished.failure_reported("screen", "ward", settings):
            raise StoreError("made of other data")
        with pytest.raises(UsageError), finished.failure_reported("screen", "ward", settings):
            raise UsageError("a wrong key")
    assert [(body["event"], body["name"]) for body in hook.bodies] == [("failed", "ward")]


def test_a_run_asked_to_end_does_not_wait_for_its_webhook():
    with Hook(0) as hook, temporary_settings(restore_defaults={PREFECT_API_URL}), pytest.raises(KeyboardInterrupt):
        started = time.monotonic()
        with outcome_reported("screen", "run", Settings.model_validate({"notify": {"webhook": hook.url}})):
            raise KeyboardInterrupt
    assert time.monotonic() - started < outcome.SHORT_TIMEOUT_S + 2 and hook.bodies[0]["event"] == "failed"


def test_a_server_that_is_away_costs_a_run_seconds_and_nothing_else(shown, monkeypatch, caplog):
    for module in (artifacts_module, courtesy):
        monkeypatch.setattr(module, "PATIENCE_S", 1.0)
    started = time.monotonic()
    away = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW: "ignore"}
    with (
        temporary_settings(away),
        outcome_reported("screen", "run", Settings()),
        progress_shown(stage_of(shown.run, "maps")),
    ):
        pass
    assert time.monotonic() - started < 5
    assert "the Prefect server does not show this" in caplog.text


def test_without_a_server_nothing_is_shown(shown, monkeypatch):
    for module in (artifacts_module, courtesy):
        monkeypatch.setattr(module, "in_background", lambda *_: pytest.fail("a thread for nobody"))
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        outcome_reported("screen", "run", Settings()),
        progress_shown(stage_of(shown.run, "maps")),
    ):
        pass


def test_progress_follows_the_files_while_parts_complete(shown, tmp_path, monkeypatch):
    run = shutil.copytree(shown.run, tmp_path / "ward7")
    record = run / "maps" / "_parts" / "00001.json"
    kept = record.read_bytes()
    record.unlink()
    monkeypatch.setattr(artifacts_module, "LOOK_S", 0.05)
    stage = stage_of(str(run), "maps")

    @flow
    def working() -> list:
        with progress_shown(stage):
            deadline = time.monotonic() + 30
            while not (before := artifacts("maps-ward7")) and time.monotonic() < deadline:
                time.sleep(0.05)
            record.write_bytes(kept)
        return before

    (before,) = working()
    (after,) = artifacts("maps-ward7")
    assert "3 of 4 parts, 2 of 3 cases" in before.description and 60 < before.data < 70
    assert after.data == 100 and after.id == before.id and after.flow_run_id


def test_a_finished_stage_run_again_changes_nothing_it_shows(shown):
    before = len(artifacts("maps-visible"))
    assert maps(shown.run, shown.settings).finished
    assert len(artifacts("maps-visible")) == before + 1


def _progress(done: int, failed: int = 0) -> StageProgress:
    return StageProgress(
        stage="maps",
        parts=8,
        parts_done=(done + failed) // 4,
        rows=done * 41,
        requested=32,
        done=done,
        skipped=0,
        failed=failed,
        seconds=1.0,
        finished=False,
    )


def test_time_left_is_that_of_the_pace_since_the_first_look():
    assert progress_line(_progress(12), _progress(12), 60) == "3 of 8 parts, 12 of 32 cases (0 rejected), 492 slices"
    assert progress_line(_progress(15, 1), _progress(12), 60).endswith("; about 4 min left")
    assert progress_line(_progress(31, 1), _progress(12), 60).endswith("; done")


def test_a_batch_is_called_by_its_cohort():
    assert name_parts("/data/ward/batches/00003/") == ("ward", "00003")
    assert name_parts("s3://bucket/run") == ("run",) and name_parts("batches/00003") == ("00003",)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("BraTS_1_flair.nii.gz: damaged gzip content (Error -3); copy the file again", "damaged gzip content"),
        (
            "a_b.nii: 17 voxels of slices 60 to 70 are NaN or infinite; repair",
            "… voxels of slices … to … are NaN or infinite",
        ),
        ("its map is not finite; set models.precision=float32", "its map is not finite"),
    ],
)
def test_reasons_are_counted_without_what_belongs_to_one_case(reason, kind):
    assert kind_of(reason) == kind


def test_the_gpu_is_held_by_one_stage_at_a_time(server):
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(LIMIT, 1)
        with gpu_slot("cpu"), gpu_slot("cuda:0"):
            assert client.read_global_concurrency_limit_by_name(LIMIT).active_slots == 1
            order = []

            def second() -> None:
                with gpu_slot("cuda"):
                    order.append("second")

            waiting = threading.Thread(target=contextvars.copy_context().run, args=(second,), daemon=True)
            waiting.start()
            waiting.join(2)
            order.append("first done")
        waiting.join(60)
        assert order == ["first done", "second"]

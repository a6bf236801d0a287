"""A bucket with several writers, with faults on the way, and with a wrong start, against a real S3 server."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from buckets import BUCKET, ROOT, SETTINGS, client_of, keys, predictions_of, quick_retries, upload, variables
from prefect_harness import WORDS
from stores import FINGERPRINT, cases, finished, maps_of

from medad_core.config import load_settings
from medad_core.errors import MedadError, UsageError
from medad_core.stages.screen import screen
from medad_core.store import MAPS, Stage, lease, objects
from medad_core.store.files import local_name, read_bytes, write_new
from medad_core.store.lock import LockedError, held, holder

pytest_plugins = ("buckets", "prefect_harness")
REPOSITORY = Path(__file__).parents[2]


# --- one writer at a time -------------------------------------------------------------------------------------------


def test_of_two_writers_the_second_is_refused_by_name(s3):
    with held(f"{ROOT}/run"):
        assert str(os.getpid()) in (holder(f"{ROOT}/run") or "")
        refused = pytest.raises(LockedError, match=f"is in use by process {os.getpid()} on .*; wait until it ends")
        with refused, held(f"{ROOT}/run"):
            pass
    assert holder(f"{ROOT}/run") is None
    with held(f"{ROOT}/run"):
        pass


HOLD_AND_DIE = "from medad_core.store.lock import held\nimport os\nwith held({!r}):\n    os.kill(os.getpid(), 9)\n"


def test_the_lease_of_a_process_that_was_killed_runs_out_by_the_clock_of_the_store(s3, s3_port, monkeypatch):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", HOLD_AND_DIE.format(f"{ROOT}/run")]
    assert subprocess.run(command, env=environment).returncode == -9
    left = read_bytes(f"{ROOT}/run/.lease")
    assert left is not None and holder(f"{ROOT}/run") is None, "it was of this machine, and is gone"
    elsewhere = left.replace(b'"machine": "', b'"machine": "x')
    client_of(s3_port).put_object(Bucket=BUCKET, Key="run/.lease", Body=elsewhere)
    monkeypatch.setattr(lease, "TERM_S", 3.0)
    monkeypatch.setattr(lease, "RENEW_S", 0.5)
    monkeypatch.setattr(time, "time", lambda: 0.0)  # a clock of this machine that stands still says nothing
    with pytest.raises(LockedError, match="is in use by process"), held(f"{ROOT}/run"):
        pass
    time.sleep(5)
    with held(f"{ROOT}/run"):
        assert str(os.getpid()) in (holder(f"{ROOT}/run") or "")


def test_a_lease_is_renewed_and_one_that_was_lost_stops_the_work(s3, s3_port, monkeypatch):
    from medad_core import stopping

    monkeypatch.setattr(lease, "RENEW_S", 0.3)
    monkeypatch.setattr(lease, "TERM_S", 3.0)
    client = client_of(s3_port)
    with pytest.raises(LockedError, match="was taken over by process 1 on elsewhere"), held(f"{ROOT}/run"):
        first = client.head_object(Bucket=BUCKET, Key="run/.lease")["LastModified"]
        time.sleep(4)
        assert client.head_object(Bucket=BUCKET, Key="run/.lease")["LastModified"] > first
        stopping.check()
        thief = json.dumps({"pid": 1, "host": "elsewhere", "since": "now", "token": "x"}).encode()
        client.put_object(Bucket=BUCKET, Key="run/.lease", Body=thief)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            stopping.check()
            time.sleep(0.1)
        pytest.fail("the loss was not noticed")
    assert b"elsewhere" in (read_bytes(f"{ROOT}/run/.lease") or b""), "the lease of another one stays"


def test_a_lease_whose_answers_are_lost_on_the_way_is_still_held(s3, monkeypatch):
    quick_retries(monkeypatch)
    monkeypatch.setattr(lease, "RENEW_S", 0.2)
    lost = iter([True, False, True, False, False, True])
    s3.disturb = lambda asked: "answered too late" if asked.method == "PUT" and next(lost, False) else None
    with held(f"{ROOT}/run"):
        time.sleep(2)
    assert holder(f"{ROOT}/run") is None


def test_a_command_whose_store_falls_silent_stops_before_its_lease_runs_out(s3, monkeypatch):
    from medad_core import stopping

    monkeypatch.setattr(lease, "RENEW_S", 0.5)
    monkeypatch.setattr(lease, "TERM_S", 2.5)
    with pytest.raises(LockedError, match="did not answer for 2 s, so its lease runs out"), held(f"{ROOT}/run"):
        s3.disturb = lambda asked: "dead"
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline:  # long before a renewal gives up
            stopping.check()
            time.sleep(0.05)
    s3.disturb = lambda asked: None


def test_a_store_that_ignores_conditions_keeps_one_writer_too(s3, monkeypatch):
    monkeypatch.setattr(lease, "SETTLE_S", 0.2)
    plain = objects.put

    def careless(uri: str, data: bytes) -> str:
        plain(uri, data)
        return ""

    monkeypatch.setattr(objects, "put_new", careless)
    with held(f"{ROOT}/run"):
        monkeypatch.setattr(objects, "put_new", lambda uri, data: (_ for _ in ()).throw(FileExistsError()))
        with pytest.raises(LockedError, match="is in use"), held(f"{ROOT}/run"):
            pass


def test_of_two_plans_the_first_stands(s3, monkeypatch):
    assert write_new(f"{ROOT}/a", b"first") and not write_new(f"{ROOT}/a", b"second")
    assert read_bytes(f"{ROOT}/a") == b"first"
    one = Stage(f"{ROOT}/run", "maps", MAPS)
    two = Stage(f"{ROOT}/run", "maps", MAPS)
    assert two.find_plan() is None and one.find_plan() is None
    plan = one.prepare(FINGERPRINT, [("a",), ("b",)])
    answers = iter([None])  # as it was when the other one had not written yet
    real = two._books.read_plan
    monkeypatch.setattr(two._books, "read_plan", lambda: next(answers, None) or real())
    assert two.prepare(FINGERPRINT, [("a", "b")]) == plan, "the parts of the one that was faster"


# --- faults on the way ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [500, 503, "cut", "answered too late", "dead"])
def test_a_stage_is_made_whole_through_faults_of_every_kind(s3, s3_port, monkeypatch, kind):
    quick_retries(monkeypatch)
    chance = random.Random(str(kind))
    share = 0.02 if kind == "dead" else 0.25
    s3.disturb = lambda asked: kind if chance.random() < share else None
    stage = finished(f"{ROOT}/run", ("a",), ("b", "c"), ("d",))
    s3.disturb = lambda asked: None
    again = Stage(f"{ROOT}/run", "maps", MAPS)
    assert again.is_finished() and again.pending() == []
    for name in "abcd":
        assert again.read_case(name).equals(maps_of(name)), name
    assert stage.manifest() == again.manifest()


def test_a_run_through_a_disturbed_network_has_the_same_rows(s3, s3_port, inbox, local, monkeypatch):
    quick_retries(monkeypatch)
    upload(s3_port, inbox, "data")
    chance = random.Random(0)
    kinds = [500, 503, "cut", "answered too late"]
    s3.disturb = lambda asked: chance.choice(kinds) if chance.random() < 0.1 else None
    screen(f"{ROOT}/data", f"{ROOT}/run", SETTINGS)
    s3.disturb = lambda asked: None
    pd.testing.assert_frame_equal(predictions_of(f"{ROOT}/run"), predictions_of(local))


@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE", "HEAD"])
def test_a_stage_that_is_killed_at_any_request_is_completed_to_the_same_rows(s3, s3_port, tmp_path, method):
    """The proxy stops before, or after, each request of a kind: what is left is what a killed process leaves."""
    calm = finished(f"{ROOT}/calm", ("a",), ("b", "c"))
    total = s3.counts()[method]
    step = max(1, total // 8)
    for late in (False, True):
        for kill_at in range(0, total, step):
            run = f"{ROOT}/{method}-{late}-{kill_at}"
            seen = 0

            def disturb(asked, kill_at=kill_at, late=late):
                nonlocal seen
                if asked.method != method and seen <= kill_at:
                    return None
                seen += asked.method == method
                if seen <= kill_at:
                    return None
                return "answered too late" if late and seen == kill_at + 1 and asked.method == method else 400

            s3.disturb = disturb
            with pytest.raises((MedadError, OSError)):
                finished(run, ("a",), ("b", "c"))
            s3.disturb = lambda asked: None
            reader = Stage(run, "maps", MAPS)
            if reader.find_plan() is not None:  # what counts is whole
                for number, record in reader.records().items():
                    assert reader.read_part(number).num_rows == record.rows
            stage = finished(run, ("a",), ("b", "c"))
            assert stage.pending() == []
            for name in "abc":
                assert stage.read_case(name).equals(calm.read_case(name))


def test_a_listing_that_is_stale_makes_a_part_again_and_changes_nothing(s3, s3_port, monkeypatch):
    finished(f"{ROOT}/run", ("a",), ("b",))
    real = objects.list_folder

    def stale(uri: str):
        folders, files = real(uri)
        return folders, {name: facts for name, facts in files.items() if name != "00001.json"}

    monkeypatch.setattr(objects, "list_folder", stale)
    stage = Stage(f"{ROOT}/run", "maps", MAPS)
    assert stage.pending() == [1]
    stage.write_part(1, cases("b"), seconds=0.5)
    monkeypatch.setattr(objects, "list_folder", real)
    assert Stage(f"{ROOT}/run", "maps", MAPS).read_case("b").equals(maps_of("b"))


# --- what goes wrong at the start -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "out", "message"),
    [
        ("s3://no-such-bucket/data", "s3://ward/run", "cannot read s3://no-such-bucket/data: no such bucket"),
        ("s3://ward/none", "s3://ward/run", "s3://ward/none: no such folder or table"),
        ("LOCAL", "s3://no-such-bucket/run", "s3://no-such-bucket/run: no such bucket"),
        ("ftp://host/data", "s3://ward/run", "ftp://host/data: ftp:// is not known"),
        ("LOCAL", "ftp://host/run", "ftp://host/run: ftp:// is not known"),
    ],
)
def test_a_wrong_place_is_one_line_before_any_work(s3, s3_port, inbox, data, out, message):
    started = time.monotonic()
    with pytest.raises(MedadError, match=message) as caught:
        screen(str(inbox) if data == "LOCAL" else data, out, SETTINGS)
    assert "\n" not in str(caught.value) and time.monotonic() - started < 30
    assert keys(s3_port) == []


def test_refused_credentials_missing_ones_and_a_store_that_is_down_are_one_line(s3, s3_port, inbox, monkeypatch):
    s3.disturb = lambda asked: 403
    with pytest.raises(MedadError, match="the store refuses the credentials of the environment"):
        screen(str(inbox), f"{ROOT}/run", SETTINGS)
    s3.disturb = lambda asked: None
    for variable, value, message in (
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "nothing listens there"),
        ("AWS_ALLOW_HTTP", "false", "set AWS_ALLOW_HTTP=true if that is meant"),
    ):
        before = os.environ[variable]
        monkeypatch.setenv(variable, value)
        objects.forget_stores()
        started = time.monotonic()
        with pytest.raises(MedadError, match=message) as caught:
            screen(str(inbox), f"{ROOT}/run", SETTINGS)
        assert "\n" not in str(caught.value) and time.monotonic() - started < 30
        monkeypatch.setenv(variable, before)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    objects.forget_stores()
    started = time.monotonic()
    with pytest.raises(MedadError, match="no credentials in the environment"):
        screen(str(inbox), f"{ROOT}/run", SETTINGS)
    assert time.monotonic() - started < 30 and keys(s3_port) == []


def test_no_message_holds_a_query_which_may_be_a_token():
    text = "Generic S3 error: Error performing GET https://a.b/c?sig=SECRET&x=1 in 3ms - Server returned 500"
    assert "SECRET" not in objects._reason(text) and "https://a.b/c" in objects._reason(text)
    assert "credentials" not in objects._reason(text.replace("/c?", "/metadata/refused.json?"))


def test_pseudonyms_of_data_in_a_bucket_are_refused(s3, s3_port, inbox, tmp_path):
    upload(s3_port, inbox, "data")
    settings = load_settings(None, [*WORDS, f"data.pseudonyms={tmp_path / 'key'}"])
    with pytest.raises(UsageError, match=r"data\.pseudonyms: .* no link leads into a bucket"):
        screen(f"{ROOT}/data", str(tmp_path / "run"), settings)


def test_the_command_screens_from_bucket_to_bucket(s3, s3_port, inbox, local, tmp_path):
    upload(s3_port, inbox, "data")
    environment = {**os.environ, **variables(s3.url), "PREFECT_HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}

    def medad(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.cli", *words]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400)

    done = medad("screen", f"{ROOT}/data", "--out", f"{ROOT}/run", *WORDS)
    assert done.returncode in (0, 3), done.stderr
    pd.testing.assert_frame_equal(predictions_of(f"{ROOT}/run"), predictions_of(local))
    shown = medad("status", f"{ROOT}/run")
    assert shown.returncode == 0 and "finished" in shown.stdout and "MB were fetched" in shown.stdout, shown.stderr
    assert local_name(f"{ROOT}/run") is None and not [path for path in tmp_path.iterdir() if "s3" in path.name]

"""Data, runs and cohorts in a bucket, over HTTP against a real S3 server."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from buckets import BUCKET, client_of, keys, upload, variables
from prefect_harness import WORDS, write_case
from stores import FINGERPRINT, cases, finished, maps_of

from medad_core.config import load_settings
from medad_core.data.cases import VolumeRef
from medad_core.data.discovery import discover
from medad_core.data.nifti import open_nifti
from medad_core.data.reads import reads_kept
from medad_core.data.source import find_cases
from medad_core.errors import CaseError, MedadError, StoreError, UsageError, WeightsError
from medad_core.export.exporting import export
from medad_core.inbox.folder import CohortFolder
from medad_core.inbox.scan import scan_inbox
from medad_core.models.fetched import local_folder
from medad_core.run.run import Run
from medad_core.stages.screen import screen
from medad_core.store import MAPS, Stage, lease, objects
from medad_core.store.files import local_name, read_bytes, write_new
from medad_core.store.lock import LockedError, held, holder, locked

pytest_plugins = ("buckets", "prefect_harness")
REPOSITORY = Path(__file__).parents[2]
ROOT = f"s3://{BUCKET}"
SETTINGS = load_settings(None, list(WORDS))


@pytest.fixture(scope="module")
def inbox(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("inbox")
    for number in range(3):
        write_case(root, f"BraTS2021_{number:05d}", seed=number)
    (root / "BraTS2021_00002" / "BraTS2021_00002_flair.nii.gz").write_bytes(b"\x1f\x8b broken")
    (root / "BraTS2021_00001" / "note.txt").write_text("beside")
    (root / "strange.nii.gz").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def local(inbox, tmp_path_factory) -> Path:
    """The run of the same cases on a disk."""
    out = tmp_path_factory.mktemp("local") / "run"
    screen(str(inbox), str(out), SETTINGS)
    return out


def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"init_backoff": timedelta(seconds=0.02), "max_backoff": timedelta(seconds=0.2), "base": 2.0}
    retries = {"max_retries": 12, "retry_timeout": timedelta(seconds=60), "backoff": seconds}
    for name in ("_PATIENT", "_HASTY"):
        monkeypatch.setattr(objects, name, retries)
    monkeypatch.setattr(objects, "_CLIENT", {**objects._CLIENT, "read_timeout": "2s"})
    objects.forget_stores()


def predictions_of(run: str | Path) -> pd.DataFrame:
    data = read_bytes(f"{run}/predictions.parquet")
    assert data is not None
    return pd.read_parquet(io.BytesIO(data))


# --- a run in a bucket ----------------------------------------------------------------------------------------------


def test_a_run_in_a_bucket_has_the_rows_of_one_on_a_disk_and_is_resumed(s3, s3_port, inbox, local):
    upload(s3_port, inbox, "data")
    out = f"{ROOT}/results/run"
    screen(f"{ROOT}/data", out, SETTINGS)
    pd.testing.assert_frame_equal(predictions_of(out), predictions_of(local))
    names = {key.removeprefix("results/run/") for key in keys(s3_port, "results/run")}
    there = {str(path.relative_to(local)) for path in local.rglob("*") if path.is_file()}
    assert names == there - {".lock"}, "nothing temporary is left, and nothing is missing"
    assert holder(out) is None

    written = s3.counts()["PUT"]
    screen(f"{ROOT}/data", out, SETTINGS)
    puts = [each.path for each in s3.asked if each.method == "PUT"][written:]
    assert not [path for path in puts if "part-" in path or "_parts/" in path], "a finished run is made once"
    pd.testing.assert_frame_equal(predictions_of(out), predictions_of(local))


def test_a_part_whose_tag_is_known_is_not_fetched_to_be_hashed_and_another_one_is(s3, s3_port):
    finished(f"{ROOT}/run", ("a",), ("b",))
    client = client_of(s3_port)

    def fetched() -> list[str]:
        return [each.path for each in s3.asked if each.method == "GET" and "part-0" in each.path]

    assert Stage(f"{ROOT}/run", "maps", MAPS).pending() == [] and fetched() == []
    other = client.get_object(Bucket=BUCKET, Key="run/maps/part-00000.parquet")["Body"].read()
    size = len(client.get_object(Bucket=BUCKET, Key="run/maps/part-00001.parquet")["Body"].read())
    client.put_object(Bucket=BUCKET, Key="run/maps/part-00001.parquet", Body=other[:size].ljust(size, b"x"))
    assert Stage(f"{ROOT}/run", "maps", MAPS).pending() == [1] and len(fetched()) >= 1


def test_what_lies_in_a_bucket_is_found_as_on_a_disk(s3, s3_port, inbox):
    upload(s3_port, inbox, "data")
    there = discover(f"{ROOT}/data")
    here = discover(inbox)

    def shown(found, root):
        return (
            [(case.case_id, case.volumes["flair"].path.removeprefix(root), case.patient) for case in found.cases],
            [(each.case_id, each.reason) for each in found.rejected],
            [(each.path.removeprefix(root), each.reason) for each in found.passed_over],
        )

    assert shown(there, f"{ROOT}/data") == shown(here, str(inbox))
    assert len(s3.asked) < 6, "a bucket is listed as a whole"


def test_a_table_may_name_files_in_a_bucket(s3, s3_port, inbox, tmp_path):
    upload(s3_port, inbox, "data")
    case = "BraTS2021_00000"
    head = "case_id,patient,modality,role,path\n"
    line = f"A,A,flair,volume,{{}}{case}/{case}_flair.nii.gz\n"
    (tmp_path / "cases.csv").write_text(head + line.format(f"{ROOT}/data/"))
    client_of(s3_port).put_object(Bucket=BUCKET, Key="data/cases.csv", Body=(head + line.format("")).encode())
    for table in (str(tmp_path / "cases.csv"), f"{ROOT}/data/cases.csv"):
        (found,) = find_cases(table, SETTINGS.data).cases
        assert found.volumes["flair"].path == f"{ROOT}/data/{case}/{case}_flair.nii.gz"
    screen(str(tmp_path / "cases.csv"), str(tmp_path / "run"), SETTINGS)
    assert len(pd.read_parquet(tmp_path / "run" / "predictions.parquet")) == 3


def test_a_volume_that_changes_in_the_bucket_is_refused_by_name(s3, s3_port, inbox, tmp_path):
    upload(s3_port, inbox, "data")
    out = f"{ROOT}/run"
    screen(f"{ROOT}/data", out, SETTINGS)
    client = client_of(s3_port)
    source = inbox / "BraTS2021_00001" / "BraTS2021_00001_flair.nii.gz"
    key = "data/BraTS2021_00000/BraTS2021_00000_flair.nii.gz"
    client.upload_file(str(source), BUCKET, key)
    with pytest.raises(StoreError, match="BraTS2021_00000"):
        screen(f"{ROOT}/data", out, SETTINGS)
    client.upload_file(str(inbox / "BraTS2021_00000" / "BraTS2021_00000_flair.nii.gz"), BUCKET, key)
    screen(f"{ROOT}/data", out, SETTINGS)  # the same content under a new tag
    with pytest.raises(UsageError, match=r"grids of volumes on a disk, and these are in s3://ward/data; copy them"):
        export(Run.reopen(out), tmp_path / "maps", "nifti")
    written = s3.counts()["PUT"]
    screen(str(inbox), out, SETTINGS)  # the same cases, copied to a disk
    puts = [each.path for each in s3.asked if each.method == "PUT"][written:]
    assert not [path for path in puts if "part-" in path]
    assert export(Run.reopen(out), tmp_path / "maps", "nifti").cases == 2


def test_a_volume_is_of_one_version_though_it_is_replaced_while_it_is_read(s3, s3_port):
    client = client_of(s3_port)
    client.put_object(Bucket=BUCKET, Key="volume", Body=b"a" * 1_000_000)
    with objects.ObjectFile(f"{ROOT}/volume") as stream:
        assert stream.read(10) == b"a" * 10
        client.put_object(Bucket=BUCKET, Key="volume", Body=b"b" * 1_000_000)
        with pytest.raises(objects.ChangedError):
            stream.read()


def test_the_end_of_a_long_object_is_read_without_its_beginning(s3, s3_port):
    body = os.urandom(3_000_000)
    client_of(s3_port).put_object(Bucket=BUCKET, Key="long", Body=body)
    before = objects.bytes_read()
    with objects.ObjectFile(f"{ROOT}/long") as stream:
        stream.seek(-100, os.SEEK_END)
        assert stream.read() == body[-100:] and stream.tell() == len(body)
        stream.seek(500_000)
        assert stream.read(20) == body[500_000:500_020]
    assert objects.bytes_read() - before < 1_000_000


def test_weights_in_a_bucket_are_copied_once_and_used(s3, s3_port, inbox, tmp_path, monkeypatch, local):
    monkeypatch.setenv("MEDAD_CACHE", str(tmp_path / "cache"))
    (weights,) = [word.partition("=")[2] for word in WORDS if word.startswith("models.weights=")]
    upload(s3_port, Path(weights), "weights")
    client_of(s3_port).put_object(Bucket=BUCKET, Key="weights/evil.pkl", Body=b"x")
    folder = local_folder(f"{ROOT}/weights", "models.weights")
    assert not (folder / "evil.pkl").exists() and (folder / "decoder.safetensors").is_file()
    settings = load_settings(None, [*WORDS, f"models.weights={ROOT}/weights"])
    screen(str(inbox), str(tmp_path / "run"), settings)
    assert predictions_of(tmp_path / "run")["p_yes"].equals(predictions_of(local)["p_yes"])
    with pytest.raises(WeightsError, match=r"models\.weights: s3://ward/none holds no model"):
        local_folder(f"{ROOT}/none", "models.weights")


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_of_a_volume_no_more_is_fetched_than_its_slices_need(s3, s3_port, tmp_path, monkeypatch, ending):
    monkeypatch.setattr(objects, "_WINDOW", (1 << 14, 1 << 14))  # as on a slow network
    generator = np.random.default_rng(0)
    volume = generator.integers(0, 30_000, (96, 96, 100)).astype(np.int16)  # hardly compressible
    path = tmp_path / f"volume{ending}"
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1.0, -1.0, 1.0, 1.0])), path)
    upload(s3_port, tmp_path, "data")
    for first, last in ((10, 20), (40, 49), (0, 99)):
        before = objects.bytes_read()
        with reads_kept() as kept:
            there = open_nifti("case", VolumeRef(f"{ROOT}/data/{path.name}"), 1).slices(first, last)
        fetched = objects.bytes_read() - before
        assert np.array_equal(there, open_nifti("case", VolumeRef(str(path)), 1).slices(first, last))
        (noted,) = kept
        assert noted.sha256 == hashlib.sha256(path.read_bytes()[: noted.read]).hexdigest()
        size = path.stat().st_size
        assert noted.read <= fetched <= min(size, (last + 1) / 100 * size * 1.1 + 600_000) + 100, (first, fetched, size)


def test_a_volume_in_a_bucket_that_ends_too_early_is_refused_as_on_a_disk(s3, s3_port, tmp_path):
    write_case(tmp_path, "BraTS2021_00000", seed=0)
    (path,) = tmp_path.rglob("*_flair.nii.gz")
    whole = path.read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], whole[:100], b"", whole[:-4] + b"\0\0\0\0"):
        path.write_bytes(content)
        client_of(s3_port).put_object(Bucket=BUCKET, Key=path.name, Body=content)
        reasons = []
        for place in (str(path), f"{ROOT}/{path.name}"):
            with reads_kept() as kept:
                try:
                    open_nifti("case", VolumeRef(place), 1).slices(60, 62)
                    reasons.append("it is read")
                except CaseError as error:
                    reasons.append(error.reason)
            assert len(kept) == 1 and kept[0].size == len(content), "what was refused is known again"
        assert reasons[0] == reasons[1]


# --- an inbox and a cohort ------------------------------------------------------------------------------------------


def test_a_cohort_in_a_bucket_is_that_of_a_disk(s3, s3_port, inbox, tmp_path):
    from medad_core.inbox.screening import screen_inbox
    from medad_core.stages.complete import complete_stage, plan_stage
    from medad_core.stages.evaluate import evaluate_run
    from medad_core.stages.screen import LoopExecutor
    from medad_core.store import PART_STAGES

    settings = load_settings(None, [*WORDS, "inbox.settle_s=0"])

    def screen_batch(run: Run, machine_is_well: bool) -> str:
        for name in PART_STAGES:
            plan_stage(run, name)
            complete_stage(run, name, LoopExecutor(run, name), machine_is_well=machine_is_well)
        return evaluate_run(run).page

    upload(s3_port, inbox, "inbox")
    places = [(f"{ROOT}/cohort", f"{ROOT}/inbox"), (str(tmp_path / "cohort"), str(inbox))]
    for cohort, source in places:
        with locked(cohort):
            assert screen_inbox(CohortFolder(cohort, source), source, settings, screen_batch).cases == 2
    case = "BraTS2021_00007"
    write_case(tmp_path / "new", case, seed=7)
    upload(s3_port, tmp_path / "new", "inbox")
    shutil.copytree(inbox, tmp_path / "inbox")
    shutil.copytree(tmp_path / "new" / case, tmp_path / "inbox" / case)
    places[1] = (places[1][0], str(tmp_path / "inbox"))
    for cohort, source in places:
        outcome = screen_inbox(CohortFolder(cohort, source), source, settings, screen_batch)
        assert [batch.batch for batch in outcome.batches] == [2] and outcome.cases == 3
    pd.testing.assert_frame_equal(*(predictions_of(cohort) for cohort, _ in places))
    names = {key.removeprefix("cohort/") for key in keys(s3_port, "cohort/")}
    there = {str(path.relative_to(tmp_path / "cohort")) for path in (tmp_path / "cohort").rglob("*") if path.is_file()}
    assert names == there - {".lock"}
    with pytest.raises(UsageError, match="lies inside the inbox"):
        CohortFolder(f"{ROOT}/inbox/cohort", f"{ROOT}/inbox")


def test_a_batch_that_is_withdrawn_leaves_nothing_though_it_is_killed_in_between(s3, s3_port, inbox):
    upload(s3_port, inbox, "inbox")
    settings = load_settings(None, [*WORDS, "inbox.settle_s=0"])
    cohort = CohortFolder(f"{ROOT}/cohort")
    scan = scan_inbox(f"{ROOT}/inbox", settings, {})
    plan = cohort.plan_batch(f"{ROOT}/inbox", cohort.pending(scan, 1), FINGERPRINT, settings)
    assert cohort.open_batch() == plan
    client_of(s3_port).put_object(Bucket=BUCKET, Key="cohort/batches/00001.withdrawn", Body=b"")  # as far as a kill
    cohort.reconcile()
    assert cohort.open_batch() is None and keys(s3_port, "cohort/") == []


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

"""Data, runs and cohorts in a bucket, over HTTP against a real S3 server: what is read and written."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from buckets import BUCKET, ROOT, SETTINGS, client_of, keys, predictions_of, screened_cohort, upload
from made_runs import SPOT, Made, commit, member
from prefect_harness import WORDS, write_case
from stores import FINGERPRINT, finished

from medad_core.config import load_settings
from medad_core.data.cases import VolumeRef
from medad_core.data.discovery import discover
from medad_core.data.nifti import open_nifti
from medad_core.data.reads import read_again, reads_kept
from medad_core.data.source import find_cases
from medad_core.errors import CaseError, StoreError, UsageError, WeightsError
from medad_core.export.exporting import export
from medad_core.inbox.folder import CohortFolder
from medad_core.inbox.scan import scan_inbox
from medad_core.models.fetched import local_folder
from medad_core.run.inputs import Inputs, PartInputs
from medad_core.run.run import Run
from medad_core.run.staleness import Comparison, compare_inputs
from medad_core.stages.screen import screen
from medad_core.store import MAPS, Item, Stage, listing, objects, stage_of
from medad_core.store.lock import holder

pytest_plugins = ("buckets", "prefect_harness")
REPOSITORY = Path(__file__).parents[2]


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
    settings = load_settings(None, [*WORDS, "inbox.settle_s=0"])
    upload(s3_port, inbox, "inbox")
    places = [(f"{ROOT}/cohort", f"{ROOT}/inbox"), (str(tmp_path / "cohort"), str(inbox))]
    for cohort, source in places:
        assert screened_cohort(cohort, source, settings).cases == 2
    case = "BraTS2021_00007"
    write_case(tmp_path / "new", case, seed=7)
    upload(s3_port, tmp_path / "new", "inbox")
    shutil.copytree(inbox, tmp_path / "inbox")
    shutil.copytree(tmp_path / "new" / case, tmp_path / "inbox" / case)
    places[1] = (places[1][0], str(tmp_path / "inbox"))
    for cohort, source in places:
        outcome = screened_cohort(cohort, source, settings)
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


# --- how often a bucket is asked ------------------------------------------------------------------------------------


def asked_by(s3, work: Callable[[], object]) -> Counter[str]:
    """The requests that `work` makes, by method; a listing is a GET without a key."""
    before = len(s3.asked)
    work()
    return Counter("LIST" if "list-type" in each.path else each.method for each in s3.asked[before:])


def made_of(s3_port: int, count: int) -> tuple[Inputs, dict[str, Stage]]:
    """The inputs of `count` cases of two objects each, as `slices` recorded them, and the stage."""
    client = client_of(s3_port)
    stage = stage_of(f"{ROOT}/run", "slices")
    names = [f"case-{number:03d}" for number in range(count)]
    plan = stage.prepare(FINGERPRINT, [names])
    read = {}
    for name in names:
        paths = [f"{name}/{role}.nii" for role in ("flair", "seg")]
        for path in paths:
            client.put_object(Bucket=BUCKET, Key=f"data/{path}", Body=f"content of {path}".encode())
        read[name] = tuple(read_again(f"{ROOT}/data/{path}", 1 << 20).replace(path=path) for path in paths)
    inputs = Inputs(f"{ROOT}/run")
    inputs.write(0, PartInputs(plan_sha256=plan.sha256, cases=read))
    stage.write_part(0, [], failed=[Item(key=name, reason="made up") for name in names])
    return inputs, {"slices": stage}


def test_files_of_a_run_are_compared_by_one_listing(s3, s3_port):
    inputs, stages = made_of(s3_port, 60)
    compared = []
    counts = asked_by(s3, lambda: compared.append(compare_inputs(inputs, stages, f"{ROOT}/data")))
    assert compared == [Comparison()]
    assert counts["LIST"] <= 4 and counts["HEAD"] <= 4 and counts["GET"] <= 2, counts
    client = client_of(s3_port)
    client.put_object(Bucket=BUCKET, Key="data/case-007/seg.nii", Body=b"another content")
    client.delete_object(Bucket=BUCKET, Key="data/case-030/flair.nii")
    client.put_object(Bucket=BUCKET, Key="data/case-041/seg.nii", Body=b"content of case-041/seg.nii")
    assert compare_inputs(inputs, stages, f"{ROOT}/data").changed == ("case-007", "case-030")


def test_objects_among_many_others_are_asked_for_one_by_one(s3, s3_port, monkeypatch):
    monkeypatch.setattr(listing, "_LISTED_FOR_ONE", 2)
    client = client_of(s3_port)
    for number in range(200):
        client.put_object(Bucket=BUCKET, Key=f"data/{number:03d}", Body=b"x" * number)
    wanted = [f"{ROOT}/data/{number:03d}" for number in range(0, 200, 10)]
    found = {}
    counts = asked_by(s3, lambda: found.update(listing.facts_of_many([*wanted, f"{ROOT}/data/none", "/on/a/disk"])))
    assert {uri: facts.st_size for uri, facts in found.items()} == {uri: int(uri[-3:]) for uri in wanted}
    assert counts["HEAD"] > 10
    assert found == {uri: objects.facts_of(uri) for uri in wanted}, "a listing says the same as a head"


def test_the_night_of_a_cohort_asks_for_its_own_batch(s3, tmp_path):
    """Beside it: a listing and two small files of every older one."""
    for number in range(1, 6):
        commit(tmp_path / "cohort", number, Made(member(f"p{number}", f"P{number}"), (SPOT,)))
    upload(s3.server, tmp_path / "cohort", "cohort")
    cohort = CohortFolder(f"{ROOT}/cohort")
    cohort.write_view()
    assert len(predictions_of(cohort.uri)) == 5
    commit(tmp_path / "cohort", 6, Made(member("p6", "P6"), (SPOT,)))
    upload(s3.server, tmp_path / "cohort" / "batches" / "00006", "cohort/batches/00006")
    before = len(s3.asked)
    cohort.write_view()
    paths = [each.path.partition("?")[0] for each in s3.asked[before:] if each.method == "GET"]
    older = [path for path in paths if "/batches/0000" in path and "/00006/" not in path]
    assert {path.rpartition("/")[2] for path in older} == {"_batch.json", "cohort.json"}
    assert sum(path.endswith("/00006/predictions.parquet") for path in paths) > 0
    assert len(predictions_of(cohort.uri)) == 6

"""Incremental cohorts: what is taken from an inbox, what a batch commits, and what is true after an interruption."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import threading
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from prefect_harness import WORDS, write_case

from medad_core.config import load_settings
from medad_core.data.nifti import UNREADABLE, hash_whole
from medad_core.errors import StoreError, UsageError
from medad_core.inbox.folder import CohortFolder
from medad_core.inbox.prune import prune
from medad_core.inbox.records import PRUNED
from medad_core.inbox.scan import InboxScan, scan_inbox
from medad_core.inbox.verify import verify_cohort
from medad_core.run.rejected import QUARANTINED
from medad_core.store import PART_STAGES, PREDICTIONS, Item, stage_of, write_table

SETTINGS = load_settings(None, [*WORDS, "inbox.settle_s=0"])
FINGERPRINT = {"model": "one"}


@pytest.fixture
def inbox(tmp_path) -> Path:
    root = tmp_path / "inbox"
    for number in range(2):
        write_case(root, f"BraTS2021_{number:05d}", seed=number)
    return root


@pytest.fixture
def cohort(tmp_path) -> CohortFolder:
    return CohortFolder(tmp_path / "cohort")


def volume(inbox: Path, case_id: str) -> Path:
    return inbox / case_id / f"{case_id}_flair.nii.gz"


def change(inbox: Path, case_id: str, seed: int) -> None:
    shutil.rmtree(inbox / case_id)
    write_case(inbox, case_id, seed)


def some_value(field: pa.Field) -> object:
    """Any value that a column of predictions takes."""
    if field.nullable:
        return None
    if pa.types.is_integer(field.type):
        return 0
    if pa.types.is_floating(field.type):
        return 0.5
    return True if pa.types.is_boolean(field.type) else "x"


def finish(cohort: CohortFolder, plan, score: float, rejected: dict[str, str] | None = None) -> None:
    """Give the run of a batch predictions, one row a case, and the reasons of the rejected.

    No model is needed to test what is committed.
    """
    run = Path(cohort.run_of(plan.number))
    rejected = rejected or {}
    case_ids = [planned.study.case_id for planned in plan.studies if planned.study.case_id not in rejected]
    items = [Item(key=case_id, reason=reason) for case_id, reason in rejected.items()]
    for name in PART_STAGES:
        stage = stage_of(str(run), name)
        stage.prepare({}, [tuple(rejected)])
        stage.write_part(0, [], **{"failed" if name == "slices" else "skipped": items})
        stage.finish()
    row = {field.name: some_value(field) for field in PREDICTIONS}
    rows = [row | {"case_id": case_id, "slice_index": 60, "anomaly_score": score} for case_id in case_ids]
    write_table(str(run / "predictions.parquet"), pa.Table.from_pylist(rows, schema=PREDICTIONS))


def night(cohort: CohortFolder, inbox: Path, score: float, rejected: dict[str, str] | None = None) -> InboxScan:
    """What the flow does, with stages that take no time."""
    Path(cohort.uri).mkdir(exist_ok=True)
    cohort.reconcile()
    scan = scan_inbox(inbox, SETTINGS, cohort.known_files())
    if pending := cohort.pending(scan, attempts=2):
        plan = cohort.plan_batch(str(inbox), pending, FINGERPRINT, SETTINGS)
        finish(cohort, plan, score, rejected)
        cohort.commit(str(inbox), plan)
    cohort.write_ledger(str(inbox), scan)
    return scan


def view(cohort: CohortFolder) -> dict[str, tuple[float, int, int]]:
    rows = pd.read_parquet(Path(cohort.uri) / "predictions.parquet")
    assert not rows.duplicated(["case_id", "slice_index"]).any()
    return {row.case_id: (row.anomaly_score, row.revision, row.batch) for row in rows.itertuples()}


def test_only_what_is_new_or_changed_is_screened_and_a_deleted_case_stays(cohort, inbox):
    night(cohort, inbox, 0.25)
    night(cohort, inbox, 0.5)
    assert len(cohort.batches()) == 1, "nothing new, but a batch"
    change(inbox, "BraTS2021_00000", seed=7)
    write_case(inbox, "BraTS2021_00005", seed=5)
    shutil.rmtree(inbox / "BraTS2021_00001")
    night(cohort, inbox, 0.75)
    assert view(cohort) == {
        "BraTS2021_00000": (0.75, 2, 2),
        "BraTS2021_00001": (0.25, 1, 1),
        "BraTS2021_00005": (0.75, 1, 2),
    }
    histories = cohort.ledger().cases
    assert [screening.revision for screening in histories["BraTS2021_00000"].screenings] == [1, 2]
    assert [case_id for case_id, history in histories.items() if not history.present] == ["BraTS2021_00001"]


def test_a_file_that_was_only_touched_or_renamed_is_not_screened_again(cohort, inbox):
    night(cohort, inbox, 0.25)
    os.utime(volume(inbox, "BraTS2021_00000"))
    moved = inbox / "scanner7"
    moved.mkdir()
    (inbox / "BraTS2021_00001").rename(moved / "BraTS2021_00001")
    night(cohort, inbox, 0.5)
    assert len(cohort.batches()) == 1


def test_a_study_that_the_share_would_not_give_while_it_was_screened_is_screened_the_next_night(cohort, inbox):
    night(cohort, inbox, 0.25, rejected={"BraTS2021_00001": f"flair.nii.gz: {UNREADABLE} (No such file or directory)"})
    assert set(view(cohort)) == {"BraTS2021_00000"} and cohort.batches()[0].changed == ("BraTS2021_00001",)
    night(cohort, inbox, 0.5)
    assert view(cohort) == {"BraTS2021_00000": (0.25, 1, 1), "BraTS2021_00001": (0.5, 1, 2)}


def test_a_new_mask_is_new_content(cohort, inbox):
    mask = inbox / "BraTS2021_00000" / "BraTS2021_00000_seg.nii.gz"
    later = mask.rename(inbox.parent / "later.nii.gz")
    night(cohort, inbox, 0.25)
    later.rename(mask)
    night(cohort, inbox, 0.5)
    assert view(cohort)["BraTS2021_00000"] == (0.5, 2, 2) and view(cohort)["BraTS2021_00001"] == (0.25, 1, 1)


def test_unchanged_files_are_not_read_again(cohort, inbox):
    known = {
        file.path: file.replace(sha256="remembered")
        for study in scan_inbox(inbox, SETTINGS, {}).studies
        for file in study.files
    }
    assert {file.sha256 for study in scan_inbox(inbox, SETTINGS, known).studies for file in study.files} == {
        "remembered"
    }


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_an_unfinished_copy_waits_and_is_screened_when_it_is_whole(cohort, inbox, share, suffix):
    path = volume(inbox, "BraTS2021_00000")
    if suffix == ".nii":
        import nibabel

        plain = path.with_suffix("")
        nibabel.save(nibabel.load(path), plain)
        path.unlink()
        path = plain
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    scan = night(cohort, inbox, 0.25)
    assert "truncated" in scan.waiting["BraTS2021_00000"] and not scan.unusable
    assert view(cohort) == {"BraTS2021_00001": (0.25, 1, 1)}
    path.write_bytes(whole)
    assert not night(cohort, inbox, 0.5).waiting
    assert view(cohort)["BraTS2021_00000"] == (0.5, 1, 2)


def test_a_copy_with_a_hole_is_not_screened_although_its_length_is_right(cohort, inbox):
    content = bytearray(volume(inbox, "BraTS2021_00000").read_bytes())
    content[-5] ^= 1  # within the checksum: every voxel can still be read
    volume(inbox, "BraTS2021_00000").write_bytes(content)
    assert "damaged" in night(cohort, inbox, 0.25).unusable["BraTS2021_00000"]
    assert list(view(cohort)) == ["BraTS2021_00001"]


def test_a_file_without_end_and_without_header_is_one_study_that_cannot_be_used(inbox):
    """1 TB that takes no room on the disk: read whole, it would be a MemoryError."""
    endless = inbox / "BraTS2021_00005_flair.nii"
    endless.touch()
    os.truncate(endless, 1 << 40)
    scan = scan_inbox(inbox, SETTINGS, {})
    assert "not a NIfTI" in scan.unusable["BraTS2021_00005"] and len(scan.studies) == 2


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_file_of_1_tb_is_one_study_that_cannot_be_used_and_is_not_hashed(inbox, suffix):
    path = volume(inbox, "BraTS2021_00000")
    content = gzip.decompress(path.read_bytes()) if suffix == ".nii" else path.read_bytes()
    path.unlink()
    endless = path.with_name(f"BraTS2021_00000_flair{suffix}")
    endless.write_bytes(content)
    os.truncate(endless, 1 << 40)
    scan = scan_inbox(inbox, SETTINGS, {})
    assert "it has 1.02e+03 GiB, more than data.max_gib=4" in scan.unusable["BraTS2021_00000"]
    assert [study.case_id for study in scan.studies] == ["BraTS2021_00001"]


@pytest.mark.parametrize("error", [MemoryError(), ValueError("of one\nstudy"), TypeError("odd")])
def test_whatever_a_study_raises_it_waits_and_the_others_are_seen(inbox, monkeypatch, error):
    def fail(case_id: str, path: Path, max_gib: float) -> str:
        if case_id == "BraTS2021_00000":
            raise error
        return hash_whole(case_id, path, max_gib)

    monkeypatch.setattr("medad_core.inbox.scan.hash_whole", fail)
    scan = scan_inbox(inbox, SETTINGS, {})
    assert type(error).__name__ in scan.waiting["BraTS2021_00000"] and "\n" not in scan.waiting["BraTS2021_00000"]
    assert [study.case_id for study in scan.studies] == ["BraTS2021_00001"]


def test_a_file_that_is_still_growing_waits(inbox):
    path, stop = volume(inbox, "BraTS2021_00000"), threading.Event()

    def write() -> None:
        with path.open("ab") as file:
            while not stop.wait(0.02):
                file.write(b"\0")
                file.flush()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        scan = scan_inbox(
            inbox, SETTINGS.model_copy(update={"inbox": SETTINGS.inbox.model_copy(update={"settle_s": 0.3})}), {}
        )
    finally:
        stop.set()
        writer.join()
    assert set(scan.waiting) == {"BraTS2021_00000"} and [study.case_id for study in scan.studies] == ["BraTS2021_00001"]


def test_an_inbox_may_be_empty_but_not_missing(tmp_path):
    assert scan_inbox(tmp_path, SETTINGS, {}) == InboxScan((), {}, {})
    with pytest.raises(UsageError, match="no such folder"):
        scan_inbox(tmp_path / "not-mounted", SETTINGS, {})


def test_an_inbox_that_is_empty_all_at_once_is_asked_after(cohort, inbox, tmp_path, caplog):
    night(cohort, inbox, 0.25)
    assert "mounted" not in caplog.text
    inbox.rename(tmp_path / "elsewhere")
    inbox.mkdir()
    night(cohort, inbox, 0.5)
    assert f"{inbox} is empty now, 4 files were there at the last look; is it mounted?" in caplog.text


def test_an_odd_folder_of_an_inbox_is_unusable_and_its_studies_are_seen(inbox):
    (inbox / "copy" / "imagesTr").mkdir(parents=True)
    (inbox / "copy" / "imagesTr" / "B.nii.gz").touch()
    (inbox / "copy" / "dataset.json").write_text("{")
    (inbox / "scan").mkdir()
    (inbox / "scan" / "IM0001").touch()
    scan = scan_inbox(inbox, SETTINGS, {})
    assert set(scan.unusable) == {"copy", "scan"} and len(scan.studies) == 2


def test_a_rejected_case_is_on_record_for_good_and_a_quarantined_one_is_tried_again(cohort, inbox):
    reasons = {
        "BraTS2021_00000": "no voxel is brain",
        "BraTS2021_00001": f"{QUARANTINED} after 2 attempts: out of luck",
    }
    night(cohort, inbox, 0.25, reasons)
    assert view(cohort) == {}
    night(cohort, inbox, 0.5, {"BraTS2021_00001": reasons["BraTS2021_00001"]})
    night(cohort, inbox, 0.75)
    tried = cohort.histories()
    assert [(each.batch, each.revision, each.attempt) for each in tried["BraTS2021_00001"]] == [(1, 1, 1), (2, 1, 2)]
    assert [each.reason for each in tried["BraTS2021_00000"]] == ["slices: no voxel is brain"]


def test_a_newer_content_that_is_rejected_takes_the_rows_of_the_older_away(cohort, inbox):
    night(cohort, inbox, 0.25)
    change(inbox, "BraTS2021_00000", seed=7)
    night(cohort, inbox, 0.5, {"BraTS2021_00000": "NaN"})
    assert view(cohort) == {"BraTS2021_00001": (0.25, 1, 1)}


def test_a_case_that_changes_while_its_batch_runs_is_not_committed(cohort, inbox):
    scan = scan_inbox(inbox, SETTINGS, {})
    plan = cohort.plan_batch(str(inbox), cohort.pending(scan, 2), FINGERPRINT, SETTINGS)
    finish(cohort, plan, 0.25)
    change(inbox, "BraTS2021_00000", seed=7)
    batch = cohort.commit(str(inbox), plan)
    assert batch.changed == ("BraTS2021_00000",) and view(cohort) == {"BraTS2021_00001": (0.25, 1, 1)}
    night(cohort, inbox, 0.5)
    assert view(cohort)["BraTS2021_00000"] == (0.5, 1, 2)


@pytest.mark.parametrize(
    "do",
    [
        lambda path, _: path.chmod(0o600),
        os.link,
        lambda path, backup: path.write_bytes(path.read_bytes()),
    ],
)
def test_a_case_whose_files_only_got_a_new_stamp_while_its_batch_ran_is_committed(cohort, inbox, tmp_path, do):
    plan = cohort.plan_batch(str(inbox), cohort.pending(scan_inbox(inbox, SETTINGS, {}), 2), FINGERPRINT, SETTINGS)
    finish(cohort, plan, 0.25)
    before = volume(inbox, "BraTS2021_00000").stat()
    do(volume(inbox, "BraTS2021_00000"), tmp_path / "backup")
    assert volume(inbox, "BraTS2021_00000").stat().st_ctime_ns != before.st_ctime_ns
    assert not cohort.commit(str(inbox), plan).changed


def test_other_content_of_the_same_length_is_a_change(cohort, inbox):
    plan = cohort.plan_batch(str(inbox), cohort.pending(scan_inbox(inbox, SETTINGS, {}), 2), FINGERPRINT, SETTINGS)
    finish(cohort, plan, 0.25)
    content = bytearray(volume(inbox, "BraTS2021_00000").read_bytes())
    content[4] ^= 1  # the time in gzip's header
    volume(inbox, "BraTS2021_00000").write_bytes(content)
    assert cohort.commit(str(inbox), plan).changed == ("BraTS2021_00000",)


def test_a_file_in_place_of_another_is_another_although_its_times_are_the_same(inbox):
    study = scan_inbox(inbox, SETTINGS, {}).studies[0]
    assert study.volume.stamp.inode == volume(inbox, study.case_id).stat().st_ino
    twin = study.volume.replace(stamp=study.volume.stamp.replace(inode=1), sha256="remembered")
    assert scan_inbox(inbox, SETTINGS, {twin.path: twin}).studies[0] == study


def test_a_ledger_of_before_inodes_were_kept_is_read(cohort, inbox):
    night(cohort, inbox, 0.25)
    path = Path(cohort.uri) / "ledger.json"
    ledger = json.loads(path.read_text())
    del ledger["seal"]  # came later too
    for file in ledger["files"].values():
        del file["stamp"]["inode"]
    path.write_text(json.dumps(ledger))
    assert len(cohort.known_files()) == 4
    night(cohort, inbox, 0.5)
    assert len(cohort.batches()) == 1


def test_killed_between_commit_and_view_the_view_is_the_old_one_until_the_next_command(cohort, inbox, monkeypatch):
    night(cohort, inbox, 0.25)
    before = (Path(cohort.uri) / "predictions.parquet").read_bytes()
    change(inbox, "BraTS2021_00000", seed=7)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        # The commit's own write of the view is the first that happens after `reconcile`.
        calls = []
        original = CohortFolder.write_view
        patch.setattr(
            CohortFolder,
            "write_view",
            lambda self: (
                original(self) if not calls and not calls.append(1) else (_ for _ in ()).throw(KeyboardInterrupt)
            ),
        )
        night(cohort, inbox, 0.5)
    assert len(cohort.batches()) == 2 and (Path(cohort.uri) / "predictions.parquet").read_bytes() == before
    cohort.reconcile()
    assert view(cohort)["BraTS2021_00000"] == (0.5, 2, 2)


def test_lost_or_damaged_views_are_made_again_and_a_damaged_commit_is_refused(cohort, inbox):
    night(cohort, inbox, 0.25)
    whole = (Path(cohort.uri) / "predictions.parquet").read_bytes()
    (Path(cohort.uri) / "ledger.json").write_text("{")
    for damage in (lambda file: file.unlink(), lambda file: file.write_bytes(whole[:100])):
        damage(Path(cohort.uri) / "predictions.parquet")
        night(cohort, inbox, 0.5)
        assert (Path(cohort.uri) / "predictions.parquet").read_bytes() == whole
    edited = pd.read_parquet(Path(cohort.uri) / "predictions.parquet").assign(anomaly_score=0.9)
    edited.to_parquet(Path(cohort.uri) / "predictions.parquet")
    assert list(verify_cohort(str(Path(cohort.uri)))) == [
        f"{Path(cohort.uri)}/predictions.parquet is not up to date, or damaged; "
        f"the next `medad screen INBOX --cohort {Path(cohort.uri)}` makes it again"
    ]
    night(cohort, inbox, 0.5)
    assert (Path(cohort.uri) / "predictions.parquet").read_bytes() == whole
    assert list(verify_cohort(str(Path(cohort.uri)))) == []
    assert len(cohort.batches()) == 1 and list(cohort.ledger().cases) == ["BraTS2021_00000", "BraTS2021_00001"]
    commit = Path(cohort.run_of(1)) / "_batch.json"
    committed = commit.read_text()
    commit.write_text(committed.replace('"revision": 1', '"revision": 2', 1))
    with pytest.raises(StoreError, match=r"_batch\.json is damaged \(it is not what was written"):
        night(cohort, inbox, 0.5)
    commit.write_text(committed[:50])
    with pytest.raises(StoreError, match=r"_batch\.json is damaged"):
        night(cohort, inbox, 0.5)


def test_predictions_that_are_not_those_committed_never_come_into_the_view(cohort, inbox):
    night(cohort, inbox, 0.25)
    table = pd.read_parquet(Path(cohort.run_of(1)) / "predictions.parquet").assign(anomaly_score=0.9)
    write_table(
        str(Path(cohort.run_of(1)) / "predictions.parquet"),
        pa.Table.from_pandas(table, schema=PREDICTIONS, preserve_index=False),
    )
    write_case(inbox, "BraTS2021_00005", seed=5)
    night(cohort, inbox, 0.5)
    rows = {"BraTS2021_00000": (0.25, 1, 1), "BraTS2021_00001": (0.25, 1, 1), "BraTS2021_00005": (0.5, 1, 2)}
    assert view(cohort) == rows
    (Path(cohort.uri) / "predictions.parquet").unlink()
    with pytest.raises(StoreError, match="not the file that was committed"):
        night(cohort, inbox, 0.75)


def test_a_cohort_inside_its_inbox_is_refused(inbox):
    with pytest.raises(UsageError, match="inside the inbox"):
        CohortFolder(inbox / "cohort", inbox)


def test_a_plan_that_is_damaged_says_what_to_delete(cohort, inbox):
    cohort.plan_batch(str(inbox), cohort.pending(scan_inbox(inbox, SETTINGS, {}), 2), FINGERPRINT, SETTINGS)
    (Path(cohort.run_of(1)) / "_planned.json").write_text("{")
    with pytest.raises(StoreError, match=r"delete .*00001: nothing of it counts"):
        cohort.open_batch()


def test_a_study_that_goes_before_it_is_planned_is_one_line(cohort, inbox):
    pending = cohort.pending(scan_inbox(inbox, SETTINGS, {}), 2)
    shutil.rmtree(inbox / "BraTS2021_00000")
    with pytest.raises(StoreError, match="cannot plan a batch of"):
        cohort.plan_batch(str(inbox), pending, FINGERPRINT, SETTINGS)


def test_a_cohort_is_of_one_model(cohort, inbox):
    night(cohort, inbox, 0.25)
    with pytest.raises(StoreError, match=r"model \(one there, two now\); choose another --cohort"):
        cohort.check_fingerprint({"model": "two"})


def test_pruning_keeps_predictions_and_the_view_can_be_made_again(cohort, inbox):
    night(cohort, inbox, 0.25)
    write_case(inbox, "BraTS2021_00005", seed=5)
    night(cohort, inbox, 0.5)
    pruned = [Path(cohort.run_of(1)) / name for name in PART_STAGES]
    files = [path for path in Path(cohort.uri).rglob("*") if path.is_file() and not set(path.parents) & set(pruned)]
    before = {path: path.read_bytes() for path in files}
    killed = Path(cohort.run_of(1)) / f".{PRUNED}.0123.tmp"  # while it wrote its note
    killed.touch()
    assert list(prune(str(Path(cohort.uri)), keep=1)) == [1] and not killed.exists()
    assert not any(stage.exists() for stage in pruned) and (Path(cohort.run_of(2)) / "slices").exists()
    assert all(path.read_bytes() == content for path, content in before.items() if path.name != ".lock")
    (Path(cohort.uri) / "predictions.parquet").unlink()
    cohort.reconcile()
    assert len(view(cohort)) == 3
    assert prune(str(Path(cohort.uri)), keep=1) == {}

"""Stages on disk: what does not count as done, rows that do not fit, and errors of the disk and of the reader."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from stores import FINGERPRINT, cases, finished, maps_of

from medad_core.errors import StoreError, UsageError
from medad_core.run.info import RunInfo, read_run_info, write_run_info
from medad_core.store import (
    MAPS,
    Item,
    PartRecord,
    Stage,
    StageManifest,
    check_writable,
    fingerprint_of,
    read_table,
    write_table,
    write_text,
)

REPOSITORY = Path(__file__).parents[1]


# --- what does not count as done -------------------------------------------------------------------------------------


def test_a_part_without_record_is_pending(tmp_path):
    stage = finished(tmp_path, ("a",), ("b",))
    (tmp_path / "maps" / "_parts" / "00001.json").unlink()
    assert stage.pending() == [1]


@pytest.mark.parametrize("damage", ["remove", "truncate", "flip"])
def test_a_damaged_part_is_pending_and_heals_when_written_again(tmp_path, damage):
    stage = finished(tmp_path, ("a",), ("b",))
    file = tmp_path / "maps" / "part-00001.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink() if damage == "remove" else file.write_bytes(data if damage == "flip" else data[:-10])
    assert stage.pending() == [1]
    with pytest.raises(StoreError, match="part 1 of 2 parts pending"):
        stage.finish()
    stage.write_part(1, cases("b"), seconds=0.5)
    assert stage.manifest() is None  # writing a part takes the claim of completion back
    stage.finish()
    assert stage.read().equals(cases("a", "b"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"number": 0}'])
def test_a_damaged_record_makes_its_part_pending(tmp_path, text):
    stage = finished(tmp_path, ("a",))
    (tmp_path / "maps" / "_parts" / "00000.json").write_text(text)
    assert stage.pending() == [0]


def test_a_record_whose_counts_do_not_add_up_is_not_believed(tmp_path):
    stage = finished(tmp_path, ("a",))
    file = tmp_path / "maps" / "_parts" / "00000.json"
    record = json.loads(file.read_text())
    del record["seal"]  # a wrong one would be enough
    file.write_text(json.dumps({**record, "done": 0}))
    assert stage.pending() == [0]


def test_counts_that_do_not_add_up_cannot_be_made():
    item = Item(key="a", reason="r")
    common = {"rows": 0, "requested": 2, "skipped": (item,), "failed": (), "seconds": 0.0}
    with pytest.raises(ValueError, match="requested 2, done 0, skipped 1, failed 0"):
        PartRecord(number=0, bytes=0, sha256="", plan_sha256="", done=0, **common)
    with pytest.raises(ValueError, match="counts do not add up"):
        StageManifest(stage="maps", fingerprint={}, fingerprint_sha256=fingerprint_of({}), parts=(), done=0, **common)


def test_finish_is_refused_while_parts_are_pending(tmp_path):
    stage = Stage(str(tmp_path), "maps", MAPS)
    stage.prepare(FINGERPRINT, [("a",), ("b",), ("c",)])
    stage.write_part(1, cases("b"), seconds=0)
    with pytest.raises(StoreError, match=r"not finished \(part 0, 2 of 3 parts pending\); run the same command again"):
        stage.finish()
    assert not stage.is_finished()


def test_finishing_twice_leaves_the_manifest_untouched(tmp_path):
    stage = finished(tmp_path, ("a",))
    before = (tmp_path / "maps" / "_manifest.json").stat()
    stage.finish()
    after = (tmp_path / "maps" / "_manifest.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_missing_part_makes_a_finished_stage_unfinished(tmp_path):
    stage = finished(tmp_path, ("a",), ("b",))
    assert stage.require_finished().done == 2
    (tmp_path / "maps" / "part-00000.parquet").unlink()
    assert not stage.is_finished()
    with pytest.raises(StoreError, match="part 0 of 2"):
        stage.require_finished()


def test_a_finished_stage_whose_record_was_deleted_is_unfinished_and_hands_no_cases_on(tmp_path):
    stage = finished(tmp_path, ("a",), ("b",))
    (tmp_path / "maps" / "_parts" / "00001.json").unlink()
    assert not stage.is_finished() and not stage.progress().finished
    with pytest.raises(StoreError, match=r"not finished \(part 1 of 2 parts pending\)"):
        stage.finished_inputs()


def test_progress_counts_from_the_records(tmp_path):
    stage = Stage(str(tmp_path), "maps", MAPS)
    stage.prepare(FINGERPRINT, [("a", "b"), ("c",)])
    stage.write_part(0, cases("a"), failed=[Item(key="b", reason="r")], seconds=2)
    progress = stage.progress()
    assert (progress.parts_done, progress.parts, progress.done, progress.failed, progress.requested) == (1, 2, 1, 1, 3)
    assert (progress.rows, progress.seconds, progress.finished) == (3, pytest.approx(2, abs=0.3), False)


# --- rows that do not fit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "items", "problem"),
    [
        (("a",), {}, "planned but neither done, skipped nor failed: b"),
        (("a", "b", "x"), {}, "not planned: x"),
        (("a", "b"), {"failed": [Item(key="b", reason="r")]}, "accounted for twice: b"),
        (("b", "a"), {}, "not in the planned order"),
        (("a", "b", "a"), {}, "rows of case 'a' do not come together"),
    ],
)
def test_rows_that_do_not_add_up_to_the_plan_are_refused_and_leave_nothing(tmp_path, rows, items, problem):
    stage = Stage(str(tmp_path), "maps", MAPS)
    stage.prepare(FINGERPRINT, [("a", "b")])
    with pytest.raises(StoreError, match=problem):
        stage.write_part(0, cases(*rows), seconds=0, **items)
    assert stage.pending() == [0]
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["_parts", "_plan.json"]


def test_repeated_keys_are_refused(tmp_path):
    stage = Stage(str(tmp_path), "maps", MAPS)
    stage.prepare(FINGERPRINT, [("a",)])
    with pytest.raises(StoreError, match="slice_index of case 'a' does not rise"):
        stage.write_part(0, cases("a", "a"), seconds=0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.drop_columns("grid"), r"missing \['grid'\], unexpected \[\]"),
        (lambda t: t.append_column("more", t["taps"]), r"missing \[\], unexpected \['more'\]"),
        (lambda t: t.set_column(6, "anomaly_score", pa.nulls(3, pa.float32())), "column anomaly_score has 3 nulls"),
        (lambda t: t.set_column(2, "taps", pa.array([4, 4, 400])), "column taps is not int8"),
    ],
)
def test_rows_of_another_schema_are_refused_naming_the_column(tmp_path, change, problem):
    stage = Stage(str(tmp_path), "maps", MAPS)
    stage.prepare(FINGERPRINT, [("a",)])
    with pytest.raises(StoreError, match=problem):
        stage.write_part(0, change(maps_of("a")), seconds=0)


def test_an_error_of_whoever_makes_the_rows_passes_through_and_leaves_nothing(tmp_path):
    def rows():
        yield maps_of("a").to_batches()[0]
        raise OSError("the scanner's disk is gone")

    stage = Stage(str(tmp_path), "maps", MAPS)
    stage.prepare(FINGERPRINT, [("a",)])
    with pytest.raises(OSError, match="the scanner's disk is gone"):
        stage.write_part(0, rows(), seconds=0)
    assert list((tmp_path / "maps").glob("*part*.parquet*")) == []
    assert stage.pending() == [0]


# --- errors of the disk and of the reader ----------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["file", "file/run"])
def test_an_unwritable_output_is_one_line_of_usage(tmp_path, below):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UsageError, match=r"cannot write results to .*; choose another output folder") as caught:
        check_writable(str(tmp_path / below))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_one_line_of_usage(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="Permission denied"):
        check_writable(str(tmp_path / "run"))


def test_checking_that_a_folder_is_writable_leaves_it_empty(tmp_path):
    check_writable(str(tmp_path / "new" / "run"))
    assert list((tmp_path / "new" / "run").iterdir()) == []


def test_preparing_below_a_file_is_one_store_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot make"):
        Stage(str(tmp_path / "file"), "maps", MAPS).prepare(FINGERPRINT, [("a",)])


def test_a_disk_that_fills_up_is_one_store_error_and_leaves_no_part(tmp_path):
    # A limit on file size makes the kernel refuse the write midway, as a full disk does.
    program = f"""
import resource, sys
sys.path.insert(0, {str(REPOSITORY / "tests")!r})
from test_store import *
stage = Stage({str(tmp_path)!r}, "maps", MAPS)
stage.prepare(FINGERPRINT, [("a",)])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    stage.write_part(0, maps_of("a", slices=60), seconds=0)
except StoreError as error:
    print(error)
print(stage.pending())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    message, pending = done.stdout.splitlines()
    assert message.startswith("cannot write maps part 0") and "too large" in message
    assert pending == "[0]"
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["_parts", "_plan.json"]


def test_a_stage_that_was_never_prepared_says_how_to_make_it(tmp_path):
    with pytest.raises(StoreError, match=r"no stage maps in .* run `medad screen"):
        Stage(str(tmp_path), "maps", MAPS).read()


def test_a_damaged_plan_says_what_to_delete(tmp_path):
    stage = finished(tmp_path, ("a",))
    (tmp_path / "maps" / "_plan.json").write_text("{")
    with pytest.raises(StoreError, match="delete the folder"):
        stage.prepare(FINGERPRINT, [("a",)])


def test_reading_what_is_not_there_is_a_store_error(tmp_path):
    stage = finished(tmp_path, ("a",))
    with pytest.raises(StoreError, match="no case 'x'"):
        stage.read_case("x")
    with pytest.raises(StoreError, match="has 1 parts; there is no part 7"):
        stage.read_part(7)


# --- single files ----------------------------------------------------------------------------------------------------


def test_a_table_is_written_whole_and_read_back(tmp_path):
    uri = str(tmp_path / "predictions.parquet")
    write_table(uri, cases("a", "b"), MAPS)
    assert read_table(uri).equals(cases("a", "b"))
    assert read_table(uri, ["peak_x"], "b").num_rows == 3


def test_a_damaged_table_is_named(tmp_path):
    write_text(str(tmp_path / "x.parquet"), "not parquet at all")
    with pytest.raises(StoreError, match=r"x.parquet: the file is damaged"):
        read_table(str(tmp_path / "x.parquet"))
    with pytest.raises(StoreError, match=r"cannot read .*y.parquet"):
        read_table(str(tmp_path / "y.parquet"))


def test_a_failed_write_keeps_the_old_file(tmp_path):
    uri = str(tmp_path / "t.parquet")
    write_table(uri, cases("a"), MAPS)
    with pytest.raises(StoreError):
        write_table(uri, cases("a").drop_columns("grid"), MAPS)
    assert read_table(uri).equals(cases("a"))
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_run_info_comes_back_and_its_absence_is_explained(tmp_path):
    info = RunInfo(settings="data: {}\n", data_root="cohort", versions={"medad": "0.1.0"})
    write_run_info(str(tmp_path / "run"), info)
    assert read_run_info(str(tmp_path / "run")) == info
    with pytest.raises(StoreError, match="is not a run of medad"):
        read_run_info(str(tmp_path))

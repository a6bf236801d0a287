"""Stages on disk: plans, parts, records and manifests."""

import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import FINGERPRINT, cases, finished, maps_of

from medad_core.errors import StoreError
from medad_core.store import (
    ANSWERS,
    MAPS,
    PREDICTIONS,
    PROMPTS,
    SLICES,
    Item,
    Stage,
    files,
    fingerprint_of,
    listing,
    sha256_file,
)

# --- the way through -------------------------------------------------------------------------------------------------


def test_rows_come_back_as_they_were_written_in_part_order(tmp_path):
    stage = finished(tmp_path, ("b", "a"), ("c",))
    assert stage.read().equals(cases("b", "a", "c"))
    assert stage.read_part(1, ["slice_index"]).column_names == ["slice_index"]


def test_a_stage_has_the_files_that_the_design_names(tmp_path):
    finished(tmp_path, ("a",), ("b",))
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    names = "_manifest.json _parts/00000.json _parts/00001.json _plan.json part-00000.parquet part-00001.parquet"
    assert found == [f"maps/{name}" for name in names.split()]


def test_a_record_says_what_its_part_is(tmp_path):
    stage = Stage(str(tmp_path), "maps", MAPS)
    stage.prepare(FINGERPRINT, [("a", "b", "c", "d")])
    failed, skipped = [Item(key="b", reason="truncated volume")], [Item(key="d", reason="no slice in range")]
    record = stage.write_part(0, cases("a", "c"), failed=failed, skipped=skipped, seconds=1.23456)
    file = tmp_path / "maps" / "part-00000.parquet"
    assert (record.requested, record.done, record.rows, record.seconds) == (4, 2, 6, pytest.approx(1.235, abs=0.3))
    assert (record.bytes, record.sha256) == (file.stat().st_size, sha256_file(str(file)))
    assert stage.records() == {0: record}
    assert stage.done_inputs(0) == ("a", "c")


def test_the_manifest_adds_up_the_parts(tmp_path):
    stage = Stage(str(tmp_path), "maps", MAPS)
    stage.prepare(FINGERPRINT, [("a", "b"), ("c",)])
    item = Item(key="b", reason="empty brain")
    stage.write_part(1, cases("c"), seconds=2)
    stage.write_part(0, cases("a"), failed=[item], seconds=1)
    manifest = stage.finish()
    assert (manifest.requested, manifest.done, manifest.failed, manifest.rows, manifest.seconds) == (
        3,
        2,
        (item,),
        6,
        pytest.approx(3, abs=0.5),
    )
    assert [part.number for part in manifest.parts] == [0, 1]
    assert manifest.fingerprint_sha256 == stage.plan().fingerprint_sha256
    assert stage.manifest() == manifest


def test_row_groups_follow_patients_however_the_rows_arrive(tmp_path):
    stage = Stage(str(tmp_path), "maps", MAPS)
    stage.prepare(FINGERPRINT, [("a", "b", "c")])
    stage.write_part(0, iter(cases("a", "b", "c").to_batches(max_chunksize=2)), seconds=0)
    file = pq.ParquetFile(tmp_path / "maps" / "part-00000.parquet")
    assert [file.read_row_group(n)["case_id"].unique().to_pylist() for n in range(file.num_row_groups)] == [
        ["a"],
        ["b"],
        ["c"],
    ]


def test_one_case_is_read_without_the_others(tmp_path):
    stage = finished(tmp_path, ("a", "b"), ("c", "d"))
    assert stage.read_case("d").equals(maps_of("d"))
    assert stage.read_case("a", ["slice_index"]).num_rows == 3


def test_a_part_in_which_every_case_failed_is_done_and_empty(tmp_path):
    stage = Stage(str(tmp_path), "maps", MAPS)
    stage.prepare(FINGERPRINT, [("a",), ()])
    stage.write_part(0, MAPS.empty_table(), failed=[Item(key="a", reason="NaN")], seconds=0)
    stage.write_part(1, [], seconds=0)
    assert stage.finish().rows == 0
    assert stage.read().schema.names == MAPS.names


@given(cuts=st.lists(st.integers(1, 5), min_size=1, max_size=9))
@settings(max_examples=20, deadline=None)
def test_the_bytes_of_a_part_do_not_depend_on_how_its_rows_are_batched(tmp_path_factory, cuts):
    def digest(rows) -> str:
        stage = Stage(str(tmp_path_factory.mktemp("run")), "maps", MAPS)
        stage.prepare(FINGERPRINT, [("a", "b", "c")])
        return stage.write_part(0, rows, seconds=0).sha256

    table = cases("a", "b", "c")
    starts = np.minimum(np.cumsum([0, *cuts, 9]), 9)
    assert digest(iter([table.slice(i, j - i) for i, j in pairwise(starts)])) == digest(table)


@pytest.mark.parametrize("schema", [SLICES, MAPS, PROMPTS, ANSWERS, PREDICTIONS])
def test_every_schema_is_keyed_by_case_and_slice(schema):
    assert schema.names[:2] == ["case_id", "slice_index"]
    assert not schema.field("case_id").nullable and not schema.field("slice_index").nullable


@pytest.mark.parametrize("name", ["with space", "ünï cödé", "a#b?c", "100%20", "case=1", "_hidden", "x::y"])
def test_a_run_folder_may_have_odd_characters(tmp_path, name):
    stage = finished(tmp_path / name, ("a",))
    assert stage.read_case("a").equals(maps_of("a"))
    assert stage.is_finished()


@pytest.mark.parametrize("case_id", ["a/../b", "tab\there", "quote\"'", "日本", " "])
def test_a_case_id_may_have_odd_characters(tmp_path, case_id):
    assert finished(tmp_path, (case_id,)).read_case(case_id).equals(maps_of(case_id))


def test_a_run_may_live_in_another_filesystem():
    run = "memory://store-test/run"
    stage = finished(run, ("a",), ("b",))
    assert stage.is_finished() and stage.pending() == []
    assert stage.read_case("b").equals(maps_of("b"))
    files.remove(f"{run}/maps/part-00001.parquet")
    assert stage.pending() == [1]


def test_a_file_uri_is_the_path_it_names(tmp_path):
    finished(f"file://{tmp_path}/run", ("a",))
    assert Stage(str(tmp_path / "run"), "maps", MAPS).is_finished()


def test_a_stage_travels_to_another_process(tmp_path):
    stage = pickle.loads(pickle.dumps(finished(tmp_path, ("a",))))
    assert stage.read().equals(maps_of("a"))


def test_parts_may_be_written_at_the_same_time(tmp_path):
    stage = Stage(str(tmp_path), "maps", MAPS)
    names = [f"case_{n}" for n in range(12)]
    stage.prepare(FINGERPRINT, [(name,) for name in names])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: stage.write_part(n, cases(names[n]), seconds=0), range(12)))
    assert stage.finish().done == 12
    assert stage.read().equals(cases(*names))


# --- books that are read once ----------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Names of the files that are read or hashed from now on."""
    names: list[str] = []
    for function in ("read_bytes", "sha256_file"):
        original = getattr(files, function)

        def noting(uri: str, original=original):
            names.append(uri.rsplit("/", 1)[-1])
            return original(uri)

        monkeypatch.setattr(files, function, noting)
    read_many = listing.read_many

    def noting_many(uri: str, wanted):
        wanted = list(wanted)
        names.extend(wanted)
        return read_many(uri, wanted)

    monkeypatch.setattr(listing, "read_many", noting_many)
    return names


def aged(run, seconds: float = 10.0) -> None:
    """Let all files but the manifest look as old as those of an earlier command."""
    for path in run.rglob("*"):
        if path.is_file() and path.name != "_manifest.json":
            stat = path.stat()
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - int(seconds * 1e9)))


def test_a_finished_stage_is_looked_at_without_reading_a_record(tmp_path, reads):
    finished(tmp_path, ("a",), ("b",))
    aged(tmp_path)
    stage = stage_of_maps(tmp_path)
    reads.clear()
    assert stage.progress().finished and len(stage.records()) == 2
    assert sorted(reads) == ["_manifest.json", "_plan.json"]


def test_of_an_unfinished_stage_only_new_records_are_read(tmp_path, reads):
    writer = Stage(str(tmp_path), "maps", MAPS)
    writer.prepare(FINGERPRINT, [("a",), ("b",), ("c",)])
    writer.write_part(0, cases("a"))
    watcher = stage_of_maps(tmp_path)
    assert watcher.progress().parts_done == 1
    writer.write_part(2, cases("c"))
    reads.clear()
    assert watcher.progress().parts_done == 2
    assert reads == ["00002.json"]


def test_a_record_that_was_replaced_is_read_again(tmp_path):
    writer = Stage(str(tmp_path), "maps", MAPS)
    writer.prepare(FINGERPRINT, [("a", "b")])
    writer.write_part(0, cases("a"), failed=[Item(key="b", reason="r")])
    watcher = stage_of_maps(tmp_path)
    assert watcher.progress().failed == 1
    writer.write_part(0, cases("a", "b"))
    assert watcher.progress().failed == 0


def test_a_record_that_was_edited_after_the_manifest_is_read_and_not_believed(tmp_path):
    finished(tmp_path, ("a",), ("b",))
    aged(tmp_path)
    (tmp_path / "maps" / "_parts" / "00001.json").write_text("{}")
    stage = stage_of_maps(tmp_path)
    assert stage.pending() == [1]


def test_a_part_of_an_earlier_command_is_hashed_once(tmp_path, reads, monkeypatch):
    finished(tmp_path, ("a",), ("b",))
    # ctime cannot be set back; two seconds later it is old enough.
    later = time.time_ns() + 10 * 10**9
    monkeypatch.setattr("medad_core.store.stage.time.time_ns", lambda: later)
    stage = stage_of_maps(tmp_path)
    reads.clear()
    assert stage.pending() == []
    stage.finish()
    assert [name for name in reads if name.endswith(".parquet")] == ["part-00000.parquet", "part-00001.parquet"]


def test_a_part_that_changes_after_it_was_hashed_is_hashed_again(tmp_path, monkeypatch):
    finished(tmp_path, ("a",))
    later = time.time_ns() + 10 * 10**9
    monkeypatch.setattr("medad_core.store.stage.time.time_ns", lambda: later)
    stage = stage_of_maps(tmp_path)
    assert stage.pending() == []
    file = tmp_path / "maps" / "part-00000.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    time.sleep(0.02)
    file.write_bytes(data)
    assert stage.pending() == [0]


def stage_of_maps(run) -> Stage:
    return Stage(str(run), "maps", MAPS)


# --- plans and fingerprints ------------------------------------------------------------------------------------------


def test_the_stored_plan_is_kept_when_parts_are_cut_differently(tmp_path):
    stage = Stage(str(tmp_path), "maps", MAPS)
    first = stage.prepare(FINGERPRINT, [("a", "b"), ("c",)])
    assert stage.prepare(dict(reversed(FINGERPRINT.items())), [("c",), ("b",), ("a",)]) == first


def test_another_fingerprint_is_refused_naming_fields_and_way_out(tmp_path):
    finished(tmp_path, ("a",))
    with pytest.raises(StoreError) as caught:
        Stage(str(tmp_path), "maps", MAPS).prepare({"decoder": "xyz", "prompts": "p"}, [("a",)])
    text = str(caught.value)
    assert (
        "decoder (abc there, xyz now), prompts (nothing there, p now), scaling (percentile there, nothing now)" in text
    )
    assert "choose another output folder, or delete" in text and "\n" not in text


def test_other_inputs_are_another_fingerprint(tmp_path):
    finished(tmp_path, ("a",))
    with pytest.raises(StoreError, match="inputs \\(1 cases"):
        Stage(str(tmp_path), "maps", MAPS).prepare(FINGERPRINT, [("a", "b")])


def test_another_schema_is_another_fingerprint(tmp_path):
    finished(tmp_path, ("a",))
    with pytest.raises(StoreError, match="schema"):
        Stage(str(tmp_path), "maps", PROMPTS).prepare(FINGERPRINT, [("a",)])


@pytest.mark.parametrize("key", ["batch_size", "models.device", "flow.runner", "path"])
def test_a_fingerprint_that_says_how_rows_are_made_is_refused(tmp_path, key):
    with pytest.raises(ValueError, match=key):
        Stage(str(tmp_path), "maps", MAPS).prepare({key: "1"}, [("a",)])


def test_an_input_planned_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'a' of maps is planned twice"):
        Stage(str(tmp_path), "maps", MAPS).prepare(FINGERPRINT, [("a", "b"), ("a",)])


def test_a_fingerprint_hash_does_not_depend_on_the_order_of_keys():
    assert (
        fingerprint_of({"a": "1", "b": "2"})
        == fingerprint_of({"b": "2", "a": "1"})
        != fingerprint_of({"a": "2", "b": "1"})
    )


def test_records_of_an_earlier_plan_do_not_count(tmp_path):
    stage = finished(tmp_path, ("a",))
    (tmp_path / "maps" / "_plan.json").unlink()
    stage.prepare({"decoder": "new"}, [("a",)])
    assert stage.pending() == [0]
    assert stage.manifest() is None

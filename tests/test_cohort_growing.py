"""What a night adds to the files of a cohort: the same rows as if they were made of all batches, which are not read."""

from __future__ import annotations

import os
import random
import shutil
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
from made_runs import FAR, SPOT, WIDE, Made, commit, make_run, member

from medad_core.errors import StoreError
from medad_core.facts.followup_rows import NUMBERS, ON_GRID
from medad_core.inbox import followup, worklist
from medad_core.inbox.folder import CohortFolder
from medad_core.inbox.prune import prune
from medad_core.inbox.view import merged
from medad_core.inbox.worklist import read_worklist
from medad_core.stages.followup import read_followups
from medad_core.store import read_table, tables

NIGHTS = 10
TABLES = ("predictions.parquet", "followup.parquet", "followup_lesions.parquet")


def some_cases(chance: random.Random) -> list[Made]:
    """One to three examinations of four patients; many come again, with other content or of another patient."""
    names = chance.sample([f"{patient}{visit}" for patient in "pqrs" for visit in "123"], chance.randint(1, 3))
    drawn = [((), (SPOT,), (WIDE,), (SPOT, FAR))[chance.randrange(4)] for _ in names]
    fails = [chance.random() < 0.2 for _ in names]
    patients = [name[0] if chance.random() < 0.8 else chance.choice("pqrs") for name in names]
    return [
        Made(member(name, patient.upper(), visit=name[1]), cells, fails="no brain" if fail else "")
        for name, patient, cells, fail in zip(names, patients, drawn, fails, strict=True)
    ]


def disturb(cohort: Path, nights: dict[int, list[Made]], chance: random.Random) -> None:
    """What happens to older batches between two nights: nothing, pruning, damage, or another evaluation."""
    what = chance.choice(["nothing", "nothing", "prune", "evaluate", "lose", "damage"])
    if what == "prune":
        prune(str(cohort), keep=1)
    number = chance.choice([*nights])
    run = cohort / "batches" / f"{number:05d}"
    if what == "evaluate":
        again = make_run(cohort.parent / f"again-{len(nights)}", *nights[number], smallest_ml=0.5)
        for name in ("cases.parquet", "worklist.csv"):
            shutil.copy(Path(again.uri) / name, run / name)
    elif what == "lose":
        (run / "worklist.csv").unlink(missing_ok=True)
    elif what == "damage":
        for part in (run / "maps").glob("part-*.parquet"):
            part.write_bytes(part.read_bytes()[:-9] + bytes(9))


def killed(folder: CohortFolder, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the view, but die when the next file after so many would appear."""
    left = iter(range(after))
    real = os.replace

    def replace(*names: object) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        real(*names)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with suppress(KeyboardInterrupt):
            folder.write_view()


@pytest.mark.parametrize("seed", range(4))
def test_what_grows_by_a_night_is_what_is_made_of_all_batches(tmp_path, monkeypatch, seed):
    """Through superseded, rejected, pruned, lost and evaluated again; killed between any two files."""
    monkeypatch.setattr(tables, "ROWS_OF_A_GROUP", 2)
    chance = random.Random(seed)
    grown, anew = tmp_path / "grown", tmp_path / "anew"
    anew.mkdir()
    (anew / "batches").symlink_to(grown / "batches")
    nights: dict[int, list[Made]] = {}
    for number in range(1, NIGHTS + 1):
        if nights:
            disturb(grown, nights, chance)
        nights[number] = some_cases(chance)
        commit(grown, number, *nights[number])
        if chance.random() < 0.4:
            killed(CohortFolder(grown), chance.randrange(7), monkeypatch)
        CohortFolder(grown).write_view()
        for name in ("_view.json", "_lists.txt", "predictions.parquet"):
            (anew / name).unlink(missing_ok=True)
        CohortFolder(anew).write_view()
        for name in TABLES:
            there = [(folder / name).exists() for folder in (grown, anew)]
            assert there[0] == there[1], (number, name)
            if all(there):
                one, other = (read_table(str(folder / name)) for folder in (grown, anew))
                assert one.schema.equals(other.schema, check_metadata=True)
                rows = str(one.to_pylist()).replace(str(grown), str(anew))  # reasons name files
                assert rows == str(other.to_pylist()), (number, name)
        assert (grown / "worklist.csv").read_bytes() == (anew / "worklist.csv").read_bytes(), number
    assert read_followups(str(grown)), "nobody was examined twice"


def test_a_night_reads_its_own_batch_and_what_its_patients_had_before(tmp_path, monkeypatch):
    commit(tmp_path, 1, Made(member("p1", "P", visit="1"), (SPOT,)), Made(member("o1", "O", visit="1")))
    commit(tmp_path, 2, Made(member("q1", "Q", visit="1"), (WIDE,)), Made(member("o2", "O", visit="2")))
    CohortFolder(tmp_path).write_view()
    kept = read_followups(str(tmp_path))
    for number in (1, 2):
        (tmp_path / "batches" / f"{number:05d}" / "predictions.parquet").unlink()
    commit(tmp_path, 3, Made(member("p2", "P", visit="2"), (WIDE,)))
    read: list[str] = []
    real_lists, real_tables = worklist.read_worklist, followup.read_table
    monkeypatch.setattr(worklist, "read_worklist", lambda path: read.append(path) or real_lists(path))
    monkeypatch.setattr(followup, "read_table", lambda path: read.append(path) or real_tables(path))
    CohortFolder(tmp_path).write_view()
    assert [str(Path(path).relative_to(tmp_path)) for path in read] == [
        "batches/00003/worklist.csv",
        "followup_lesions.parquet",
        "batches/00001/cases.parquet",
        "batches/00003/cases.parquet",
    ]
    assert read_followups(str(tmp_path))[:1] == kept and read_followups(str(tmp_path))[1].later == "p2"
    assert [row["case_id"] for row in read_worklist(str(tmp_path / "worklist.csv"))] == ["p2", "q1", "o1", "o2", "p1"]
    assert read_table(str(tmp_path / "predictions.parquet"))["case_id"].to_pylist() == ["o1", "o2", "p1", "p2", "q1"]


def test_maps_that_could_not_be_read_are_compared_once_they_can(tmp_path):
    commit(tmp_path, 1, Made(member("p1", "P", visit="1"), (SPOT,)))
    commit(tmp_path, 2, Made(member("p2", "P", visit="2"), (WIDE,)))
    (part,) = (tmp_path / "batches" / "00001" / "maps").glob("part-*.parquet")
    whole = part.read_bytes()
    part.write_bytes(whole[:-9] + bytes(9))
    CohortFolder(tmp_path).write_view()
    assert read_followups(str(tmp_path))[0].compared == NUMBERS
    part.write_bytes(whole)
    commit(tmp_path, 3, Made(member("q1", "Q"), (SPOT,)))
    CohortFolder(tmp_path).write_view()
    assert read_followups(str(tmp_path))[0].compared == ON_GRID


def test_a_list_that_was_edited_is_made_of_all_batches(tmp_path):
    commit(tmp_path, 1, Made(member("p1", "P"), (SPOT,)))
    CohortFolder(tmp_path).write_view()
    whole = (tmp_path / "worklist.csv").read_text()
    (tmp_path / "worklist.csv").write_text(whole.replace("p1", "x1"))
    commit(tmp_path, 2, Made(member("q1", "Q"), ()))
    CohortFolder(tmp_path).write_view()
    assert [row["case_id"] for row in read_worklist(str(tmp_path / "worklist.csv"))] == ["p1", "q1"]


def test_a_batch_that_the_disk_would_not_give_is_read_the_next_night(tmp_path, monkeypatch):
    commit(tmp_path, 1, Made(member("p1", "P", visit="1"), (SPOT,)), Made(member("p2", "P", visit="2"), (WIDE,)))
    real = followup.cohort_of

    def fail(run: str):
        try:
            raise OSError(5, "Input/output error")
        except OSError as error:
            raise StoreError("cannot read cohort.json: Input/output error") from error

    monkeypatch.setattr(followup, "cohort_of", fail)
    CohortFolder(tmp_path).write_view()
    assert read_followups(str(tmp_path)) == []
    monkeypatch.setattr(followup, "cohort_of", real)
    CohortFolder(tmp_path).write_view()
    assert [row.later for row in read_followups(str(tmp_path))] == ["p2"]


def rows_of(names: list[str], batch: int) -> pa.Table:
    """Three rows a case."""
    each = [name for name in sorted(names) for _ in range(3)]
    schema = pa.schema({"case_id": pa.string(), "slice_index": pa.int32(), "batch": pa.int32()})
    columns = {"case_id": each, "slice_index": [0, 1, 2] * len(names), "batch": [batch] * len(each)}
    return pa.table(columns, schema=schema)


@pytest.mark.parametrize("seed", range(40))
def test_merged_rows_are_those_of_both_sorted(tmp_path, monkeypatch, seed):
    chance = random.Random(seed)
    monkeypatch.setattr(tables, "ROWS_OF_A_GROUP", chance.randint(1, 9))
    pool = [*"abcdefghäöü\U0001f600", "ab", "a b", "-"]
    before = rows_of(chance.sample(pool, chance.randint(0, 12)), 1)
    replaced = chance.sample(pool, chance.randint(0, 6))
    rows = rows_of([name for name in replaced if chance.random() < 0.7], 2)
    path = str(tmp_path / "rows.parquet")
    tables.write_rows(path, [before.slice(0, 4), before.slice(4)], before.schema)
    result = pa.concat_tables([rows.slice(0, 0), *merged(tables.read_groups(path), replaced, rows)])
    left = [row for row in before.to_pylist() if row["case_id"] not in replaced]
    expected = sorted(left + rows.to_pylist(), key=lambda row: (row["case_id"], row["slice_index"]))
    assert result.to_pylist() == expected

"""Worklist and follow-up of a cohort: over all batches, the newest content of every case, and never out of date."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from made_runs import FAR, SPOT, WIDE, Made, commit, make_run, member

from medad_core.facts.followup_rows import NOTHING, ON_GRID
from medad_core.facts.worklist import HEADS, urgency
from medad_core.inbox.folder import CohortFolder
from medad_core.inbox.prune import prune
from medad_core.inbox.worklist import read_worklist
from medad_core.stages.followup import read_followups
from medad_core.store import read_table


def worklist(cohort: Path) -> list[tuple[str, str, str]]:
    CohortFolder(cohort).write_view()
    return [(row["place"], row["case_id"], row["batch"]) for row in read_worklist(str(cohort / "worklist.csv"))]


def test_the_worklist_of_a_cohort_is_that_of_one_run_of_all_its_cases(tmp_path):
    cases = [
        Made(member("b", "B"), (SPOT,)),
        Made(member("=a", "A"), (WIDE,)),
        Made(member("c", "C"), (SPOT,), p_yes=0.875),
        Made(member("d", "D"), ()),
        Made(member("e", "E"), (WIDE, FAR)),
    ]
    make_run(tmp_path / "run", *cases)
    whole = read_worklist(str(tmp_path / "run" / "worklist.csv"))
    cohort = tmp_path / "cohort"
    commit(cohort, 1, cases[0], cases[3])
    commit(cohort, 2, cases[1], cases[2], cases[4])
    assert worklist(cohort) == [("1", "e", "2"), ("2", "=a", "2"), ("3", "c", "2"), ("4", "b", "1"), ("5", "d", "1")]
    rows = read_worklist(str(cohort / "worklist.csv"))
    assert [{name: row[name] for name in HEADS} for row in rows] == whole
    facts = {row["case_id"]: row for number in (1, 2) for row in cases_of(cohort, number)}
    assert all(row["volume_ml"] == f"{facts[row['case_id']]['volume_ml']:.2f}" for row in rows)


def cases_of(cohort: Path, number: int) -> list[dict]:
    return read_table(str(cohort / "batches" / f"{number:05d}" / "cases.parquet")).to_pylist()


def test_a_case_stands_in_the_worklist_once_with_its_newest_content_or_not_at_all(tmp_path):
    commit(tmp_path, 1, Made(member("a", "A"), (WIDE,)), Made(member("b", "B"), (SPOT,)), Made(member("c", "C"), ()))
    commit(tmp_path, 2, Made(member("a", "A"), ()), Made(member("b", "B"), fails="no brain"))
    assert worklist(tmp_path) == [("1", "a", "2"), ("2", "c", "1")]


def test_the_worklist_follows_a_batch_that_is_evaluated_again_and_is_not_written_for_nothing(tmp_path, caplog):
    commit(tmp_path, 1, Made(member("a", "A"), (SPOT,)), Made(member("b", "B"), (WIDE,)))
    assert [name for _, name, _ in worklist(tmp_path)] == ["b", "a"]
    before = (tmp_path / "worklist.csv").stat()
    worklist(tmp_path)
    assert (tmp_path / "worklist.csv").stat().st_ino == before.st_ino
    other = make_run(tmp_path / "other", Made(member("a", "A"), (WIDE,)), Made(member("b", "B"), ()))
    own = tmp_path / "batches" / "00001" / "worklist.csv"
    shutil.copy(Path(other.uri) / "worklist.csv", own)
    assert [name for _, name, _ in worklist(tmp_path)] == ["a", "b"]
    for damage in ("unlink", "write"):
        own.unlink() if damage == "unlink" else own.write_text("case_id\nx\n")
        with caplog.at_level(logging.WARNING):
            assert worklist(tmp_path) == []
        assert "medad evaluate" in caplog.messages[-1]


def test_a_patient_is_followed_across_batches_and_a_pruned_pair_stays(tmp_path):
    commit(tmp_path, 1, Made(member("p1", "P", visit="1"), (SPOT,)), Made(member("q1", "Q")))
    commit(tmp_path, 2, Made(member("p2", "P", visit="2"), (WIDE,)))
    CohortFolder(tmp_path).write_view()
    (row,) = read_followups(str(tmp_path))
    assert (row.earlier, row.later, row.batch_earlier, row.batch_later) == ("p1", "p2", 1, 2)
    assert row.compared == ON_GRID and row.volume_ml_later == cases_of(tmp_path, 2)[0]["volume_ml"]
    pairs = read_table(str(tmp_path / "followup_lesions.parquet")).to_pylist()
    assert [(pair["lesion_earlier"], pair["lesion_later"]) for pair in pairs] == [(1, 1)]
    for name in ("slices", "maps"):
        shutil.rmtree(tmp_path / "batches" / "00001" / name)
    commit(tmp_path, 3, Made(member("p3", "P", visit="3"), (SPOT, FAR)), Made(member("q2", "Q"), fails="no brain"))
    CohortFolder(tmp_path).write_view()
    first, second, third = read_followups(str(tmp_path))
    assert first == row and (second.earlier, second.later, second.new) == ("p2", "p3", 1)
    assert (third.compared, third.reason) == (NOTHING, "q2 is not compared (no brain)")
    lesions = read_table(str(tmp_path / "followup_lesions.parquet")).to_pylist()
    assert [pair for pair in lesions if pair["later"] == "p2"] == pairs


def test_maps_that_were_pruned_before_they_could_be_compared_are_said_to_be(tmp_path):
    commit(tmp_path, 1, Made(member("p1", "P", visit="1"), (SPOT,)))
    commit(tmp_path, 2, Made(member("p2", "P", visit="2"), (WIDE,)))
    prune(str(tmp_path), keep=1)
    CohortFolder(tmp_path).write_view()
    (row,) = read_followups(str(tmp_path))
    assert row.reason == "maps cannot be read (those of batch 1 were removed by `medad prune`)"


def test_newer_content_of_one_examination_is_no_second_examination(tmp_path):
    commit(tmp_path, 1, Made(member("p1", "P", visit="1"), (SPOT,)))
    commit(tmp_path, 2, Made(member("p1", "P", visit="1"), (WIDE,)))
    CohortFolder(tmp_path).write_view()
    assert read_followups(str(tmp_path)) == [] and not (tmp_path / "followup.csv").exists()


def test_a_batch_that_cannot_be_read_does_not_stop_the_night(tmp_path):
    commit(tmp_path, 1, Made(member("p1", "P", visit="1")), Made(member("q1", "Q", visit="1")))
    commit(tmp_path, 2, Made(member("p2", "P", visit="2")))
    commit(tmp_path, 3, Made(member("q2", "Q", visit="2")))
    (tmp_path / "batches" / "00002" / "cases.parquet").unlink()
    (part,) = (tmp_path / "batches" / "00003" / "maps").glob("part-*.parquet")
    part.write_bytes(part.read_bytes()[:-9] + bytes(9))
    CohortFolder(tmp_path).write_view()
    p, q = read_followups(str(tmp_path))
    assert p.reason == "p2 is not compared (batch 2 was not evaluated)"
    assert q.reason.startswith("maps cannot be read (") and q.change_ml == 0 and q.new is None
    (tmp_path / "followup.parquet").write_bytes(b"damaged")
    CohortFolder(tmp_path).write_view()
    assert read_followups(str(tmp_path)) == [p, q]


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ({"volume_ml": "10.00"}, {"volume_ml": "9.99"}),  # as numbers, not as text
        ({"volume_ml": "0.06"}, {"volume_ml": "9.99", "finding": "none"}),
        ({"highest_p_yes": "0.001"}, {"highest_p_yes": ""}),
        ({"highest_score": "0.501"}, {"highest_score": "0.500"}),
        ({"case_id": "a"}, {"case_id": "b"}),
    ],
)
def test_the_more_urgent_of_two_rows_comes_first(more, less):
    row = {"finding": "map only", "volume_ml": "1.00", "highest_p_yes": "", "highest_score": "0.500", "case_id": "x"}
    assert urgency(row | more) < urgency(row | less)

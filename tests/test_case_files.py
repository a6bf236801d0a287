"""Reports of real runs: their files, whether they are those of the results, and what is not written again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from prefect_harness import WORDS, write_case

from medad_core.config import load_settings
from medad_core.errors import CaseError, StoreError, UsageError
from medad_core.llm.questions import Question
from medad_core.report.case import CaseReport
from medad_core.run.run import Run
from medad_core.stages.case_files import remove_orphans, write_reports
from medad_core.stages.case_reports import CaseReporter, case_report_of
from medad_core.stages.evaluate import evaluate_run
from medad_core.stages.screen import screen

pytest_plugins = ("prefect_harness",)
CASES = ["BraTS2021_00000", "BraTS2021_00001", "BraTS2021_00003"]
CASE, CUT = CASES[0], "BraTS2021_00002"
SETTINGS = load_settings(None, WORDS)
HOSTILE = "<img src=x onerror=alert(1)>"


def rows(run: Path | str, name: str, case_id: str) -> list[dict]:
    table = pq.read_table(Path(run) / f"{name}.parquet")
    return table.filter(pc.equal(table["case_id"], case_id)).to_pylist()


def stored(run: Path | str, case_id: str = CASE) -> CaseReport:
    return CaseReport.model_validate_json((Path(run) / "reports" / f"{case_id}.json").read_text())


def times(run: Path | str) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (Path(run) / "reports").iterdir()}


@pytest.fixture(scope="module")
def reported(screened, tmp_path_factory) -> Path:
    """A finished run of three good cases and a truncated one, with the reports of the good ones."""
    run = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(screened.run, run)
    write_reports(Run.reopen(str(run)), CASES)
    return run


@pytest.fixture
def copied(reported, tmp_path) -> Path:
    return Path(shutil.copytree(reported, tmp_path / "run"))


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    """A run of one slice of an unlabelled case with a hostile name, that was asked four questions."""
    root = tmp_path_factory.mktemp("odd")
    write_case(root / "data", "case", seed=3)
    shutil.move(root / "data" / "case", root / "data" / HOSTILE)
    folder = root / "data" / HOSTILE
    (folder / "case_seg.nii.gz").unlink()
    (folder / "case_flair.nii.gz").rename(folder / f"{HOSTILE}_flair.nii.gz")
    words = [word for word in WORDS if not word.startswith("models.weights")]
    words += ["data.last_slice=60", "llm.questions=[presence,location,size,number]", "data.checks=warn"]
    screen(str(root / "data"), str(root / "run"), load_settings(None, words))
    return root / "run"


def test_every_case_has_its_report_in_every_form(reported):
    names = {path.name for path in (reported / "reports").iterdir()}
    for case_id in CASES:
        assert {f"{case_id}.{form}" for form in ("md", "html", "pdf", "json")} <= names
        given = stored(reported, case_id)
        pictures = {one.picture for one in given.key_slices}
        assert pictures and pictures <= names
        assert all(f"]({picture})" in (reported / "reports" / f"{case_id}.md").read_text() for picture in pictures)
        assert "data:image/png;base64," in (reported / "reports" / f"{case_id}.html").read_text()
    assert not any(CUT in name for name in names)
    assert (reported / "reports").stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in (reported / "reports").iterdir())


def test_every_number_of_a_report_is_the_one_in_the_tables(reported):
    for case_id in CASES:
        given = stored(reported, case_id)
        (case,) = rows(reported, "cases", case_id)
        for lesions, source, suffix in ((given.found, "map", ""), (given.true, "mask", "_true")):
            for name in ("lesions", "volume_ml", "longest_mm", "side", "is_cut"):
                assert getattr(lesions, name) == case[name + suffix]
            table = [row for row in rows(reported, "lesions", case_id) if row["source"] == source]
            assert len(lesions.each) == len(table)
            for one, row in zip(lesions.each, table, strict=True):
                dumped = one.model_dump()
                assert {name: row[name] for name in dumped} == {**dumped, "regions": row["regions"]}
        for name in ("patient", "split", "first_slice", "last_slice", "threshold", "smallest_ml", "regions_not_named"):
            assert getattr(given, name) == case[name]
        predictions = {row["slice_index"]: row for row in rows(reported, "predictions", case_id)}
        verdicts = [row["verdict"] for row in predictions.values()]
        assert (given.screened.slices, given.screened.slices_yes) == (len(verdicts), verdicts.count("yes"))
        assert given.screened.highest_p_yes == max(row["p_yes"] for row in predictions.values())
        for key in given.key_slices:
            row = predictions[key.slice_index]
            assert (key.anomaly_score, key.p_yes) == (row["anomaly_score"], row["p_yes"])
            assert key.statements[0].answer == row["answer"] and key.statements[0].value == row["verdict"]
            named = [one.value for one in key.statements if one.subject == "location"]
            assert named == ([row["location"]] if row["location"] else [])
            of_mask = [one.with_mask.value for one in key.statements if one.subject == "location"]
            assert of_mask == ([row["location_true"] or "none"] if row["location"] else [])
        assert given.regions_not_named == "its grid is not that of SRI24"
        assert given.fingerprint == next(iter(predictions.values()))["model_fingerprint"]


def test_finding_and_slice_are_those_of_the_worklist(reported):
    lines = (reported / "worklist.csv").read_text().splitlines()
    head, *entries = [line.split(",") for line in lines]
    for entry in entries:
        row = dict(zip(head, entry, strict=True))
        given = stored(reported, row["case_id"])
        assert (given.finding, str(given.look_at)) == (row["finding"], row["look_at"])
        assert f"{given.found.volume_ml:.2f}" == row["volume_ml"]


def test_what_a_killed_command_left_is_completed_and_nothing_else_is_written(copied):
    before = times(copied)
    folder = copied / "reports"
    (folder / f"{CASE}.json").unlink()  # killed before the last file
    (folder / f"{CASE}-slice-099.png").write_bytes(b"of another key slice")
    (folder / "BraTS2021_00001.pdf").unlink()
    (folder / f".{CASE}.pdf.0123.tmp").write_bytes(b"half")
    done = write_reports(Run.reopen(str(copied)), CASES)
    assert (done.written, done.unchanged, done.failed) == (CASES[:2], CASES[2:], {})
    assert remove_orphans(Run.reopen(str(copied)), CASES) == []
    after = times(copied)
    assert set(after) == set(before)
    assert {name for name in after if after[name] == before[name]} == {name for name in before if CASES[2] in name}


def test_a_report_that_was_edited_is_written_again(copied):
    path = copied / "reports" / f"{CASE}.json"
    path.write_text(path.read_text().replace("The map shows", "The radiologist sees"))
    assert write_reports(Run.reopen(str(copied)), [CASE]).written == [CASE]
    assert "radiologist" not in path.read_text()


def test_another_answer_or_language_makes_another_report(copied):
    before = stored(copied)
    table = pq.read_table(copied / "predictions.parquet")
    answers = pa.array([f"<script>{text}</script>" for text in table["answer"].to_pylist()])
    unread = {"answer": answers, "answer_parsed": pa.array([False] * len(table))}
    unread |= {"verdict": pa.nulls(len(table), pa.string()), "location": pa.nulls(len(table), pa.string())}
    for name, column in unread.items():
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    pq.write_table(table, copied / "predictions.parquet")
    assert write_reports(Run.reopen(str(copied)), [CASE]).written == [CASE]
    given = stored(copied)
    assert given.inputs_sha256 != before.inputs_sha256 and given.screened.unreadable == 3
    (statement,) = given.key_slices[0].statements
    assert statement.value is None and statement.agrees is None and statement.answer.startswith("<script>")
    assert "cannot be read" in given.impression[1]
    assert "<script>" not in (copied / "reports" / f"{CASE}.html").read_text()
    settings = load_settings(None, [*WORDS, "report.language=de"])
    assert write_reports(Run.reopen(str(copied), settings), [CASE]).written == [CASE]
    assert stored(copied).language == "de" and stored(copied).found == given.found


def test_an_empty_map_has_a_report_of_the_threshold_that_the_results_have(copied):
    settings = load_settings(None, [*WORDS, "evaluate.map_threshold=1"])
    evaluate_run(Run.reopen(str(copied), settings))
    given = case_report_of(Run.reopen(str(copied), SETTINGS), CASE)  # run.json still says 0.5
    assert given.threshold == 1 and given.found.each == () and given.found.volume_ml == 0
    (key,) = given.key_slices
    predictions = rows(copied, "predictions", CASE)
    best = max(predictions, key=lambda row: row["anomaly_score"])
    assert key.slice_index == best["slice_index"] == given.look_at and key.lesions == ()
    assert "no lesion of 0.05 ml or more above 1 in slices 60 to 62" in given.impression[0]
    assert {one.value for one in key.statements[0].compared} == {"no"}
    assert given.true is not None and given.true.each
    assert write_reports(Run.reopen(str(copied), settings), [CASE]).failed == {}


def test_reports_of_cases_that_the_run_has_no_more_are_removed(copied):
    kept = ["BraTS2021_00001", "BraTS2021_00003"]
    assert remove_orphans(Run.reopen(str(copied)), kept) == [CASE]
    assert not any(CASE in name for name in times(copied)) and len(times(copied)) >= 10


def test_a_case_that_cannot_be_reported_does_not_stop_the_others(copied):
    part = next((copied / "maps").glob("part-00000.parquet"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    done = write_reports(Run.reopen(str(copied)), [CASE, CUT, "BraTS2021_00001"])
    assert done.unchanged == ["BraTS2021_00001"] and set(done.failed) == {CASE, CUT}
    assert "is damaged" in done.failed[CASE] and "rejected at the stage slices" in done.failed[CUT]


def test_a_phantom_of_the_cohort_is_one_in_its_report(copied):
    run = Run.reopen(str(copied))
    run.cohort = run.cohort.replace(members=tuple(one.replace(phantom=True) for one in run.cohort.members))
    assert CaseReporter(run).draft(CASE).report.phantom and not stored(copied).phantom


def test_reports_that_are_there_are_not_written_again(reported):
    before = times(reported)
    done = write_reports(Run.reopen(str(reported)), CASES)
    assert (done.written, done.unchanged) == ([], CASES) and times(reported) == before


def test_a_case_that_the_run_does_not_have_and_one_that_it_rejected(reported):
    run = Run.reopen(str(reported))
    with pytest.raises(UsageError, match=r"nobody: the run has no such case; .*worklist.csv"):
        case_report_of(run, "nobody")
    with pytest.raises(CaseError, match=r"rejected at the stage slices: .*truncated"):
        case_report_of(run, CUT)


def test_a_run_that_is_not_finished_or_has_no_results_names_the_way_out(copied):
    (copied / "cases.parquet").unlink()
    with pytest.raises(StoreError, match=r"cases.parquet.*`medad evaluate .*run` makes it again"):
        CaseReporter(Run.reopen(str(copied)))
    (copied / "answers" / "_manifest.json").unlink()
    with pytest.raises(StoreError, match=r"stage answers .* is not finished .* run the same command again"):
        CaseReporter(Run.reopen(str(copied)))


def test_one_slice_of_an_unlabelled_case_with_a_hostile_name(odd):
    done = write_reports(Run.reopen(str(odd)), [HOSTILE])
    assert done.written == [HOSTILE]
    given = stored(odd, HOSTILE)
    assert given.true is None and given.first_slice == given.last_slice == 60
    (key,) = given.key_slices
    questions = rows(odd, "questions", HOSTILE)
    asked = {one.question: one for one in key.statements if one.subject == one.question}
    assert list(asked) == [row["question"] for row in questions] == ["presence", "location", "size", "number"]
    for row in questions:
        statement = asked[row["question"]]
        assert (statement.answer, statement.value) == (row["answer"], row["value"])
        assert statement.asked == Question(row["question"]).worded() and statement.with_mask is None
    assert given.further_questions == ()
    page = (odd / "reports" / f"{HOSTILE}.html").read_text()
    assert "<img src=x" not in page and "Only slice 60 was seen" in page
    assert "There is no segmentation to compare with." in page
    assert write_reports(Run.reopen(str(odd)), [HOSTILE]).unchanged == [HOSTILE]


def test_the_map_of_a_statement_is_that_of_the_results(reported):
    """The presence that the map states of a key slice is that of its lesions: no slice is taken for another."""
    for case_id in CASES:
        for key in stored(reported, case_id).key_slices:
            of_map, of_facts = (one.value for one in key.statements[0].compared)
            assert of_map == of_facts == ("yes" if key.lesions else "no")
            assert np.isfinite(key.anomaly_score)

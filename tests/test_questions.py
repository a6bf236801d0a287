"""Questions: their words, what a mask says, how answers are read, and a run that asks several."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from maps_to_learn import empty_example
from prefect_harness import WORDS, restate, weights_for, write_case
from safetensors.torch import load_file, save_file
from scipy.special import expit

from medad_core.config import load_settings
from medad_core.data.findings import NUMBERS, PLACES, SIDES, SIZES, TumourFinding, find, measure_parts, spread_of
from medad_core.data.location import CELLS
from medad_core.errors import UsageError, WeightsError
from medad_core.llm.grammar import QUESTION
from medad_core.llm.questions import NONE, Question, families, questions_of
from medad_core.llm.temperature import fit_temperature, tempered
from medad_core.metrics import metric_rows
from medad_core.metrics.names import supervision_of
from medad_core.metrics.questions import question_statistics
from medad_core.models.loading import open_tensors
from medad_core.models.view import ALONE
from medad_core.models.weights import CONVERTER, converter_facts
from medad_core.stages.answers import _answer_rows
from medad_core.stages.screen import screen
from medad_core.store import ANSWERS, read_table
from medad_core.training.card import may_be_asked
from medad_core.training.maps import move

ALL = ("presence", "location", "side", "size", "region", "number")
SIDE = 96


def blob(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """A mask (96, 96) of boxes: first row and column, height and width."""
    mask = np.zeros((SIDE, SIDE), bool)
    for row, column, height, width in boxes:
        mask[row : row + height, column : column + width] = True
    return mask


def finding(*boxes: tuple[int, int, int, int], pixel_mm2: float = 1.0) -> TumourFinding:
    """Of boxes in a brain from column 10 to column 89: its middle is between the columns 49 and 50."""
    brain = np.zeros((SIDE, SIDE), bool)
    brain[5:90, 10:90] = True
    return find(blob(*boxes), brain, pixel_mm2)


def test_every_family_has_wordings_to_learn_and_others_held_out():
    assert tuple(families()) == ("presence", "location", "side", "size", "region", "number")
    words = [word for given in families().values() for word in (*given.wordings, *given.held_out)]
    assert len(set(words)) == len(words) and all(len(given.wordings) >= 12 for given in families().values())
    assert all("{place}" in word for given in (families()["region"],) for word in (*given.wordings, *given.held_out))
    assert Question("presence").worded() == QUESTION
    assert Question("region", "top right").worded().endswith("Is there an anomaly at the top right of the image?")
    assert Question("region", "left half").worded(1).endswith("Is there any anomaly in the left half of the image?")
    assert Question("side").worded(0, held_out=True).endswith("Left or right?")


def test_a_mask_says_side_size_number_and_place():
    one = finding((40, 14, 9, 9))  # left in the picture is the patient's right
    assert (one.side, one.number, one.cell) == ("right", "one", "left")
    assert one.size == "1 to 3 cm" and one.longest_mm == pytest.approx(np.hypot(9, 9))
    assert replace(one, right=0.05).side == "left" and replace(one, right=0.5).side == "both"
    assert finding((40, 47, 8, 6)).side == "both"
    assert finding((40, 14, 4, 4)).size == "under 1 cm"
    assert finding((40, 14, 4, 4), pixel_mm2=16.0).size == "1 to 3 cm"
    assert finding((10, 14, 50, 5)).size == "over 3 cm"
    assert finding((40, 14, 9, 9), (40, 70, 6, 6)).number == "several"
    assert finding((40, 14, 9, 9), (40, 70, 2, 2)).number == "one"  # too small to count beside a larger one
    assert finding((40, 70, 2, 2)).number == "one" and finding((40, 70, 1, 1), (10, 70, 1, 1)).number == "one"
    assert {place for place in PLACES if one.is_in(place)} == {"left half", "left", "top half", "bottom half"}
    assert find(blob(), blob((0, 0, 9, 9)), 1.0) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 80)] * 2, *[st.integers(1, 15)] * 2), min_size=1, max_size=3))
def test_the_longest_diameter_is_that_between_the_corners_of_pixels(boxes):
    mask = blob(*boxes)
    longest, _ = measure_parts(mask, 4.0)
    alone = max(np.hypot(height, width) for _, _, height, width in boxes)
    rows, columns = np.nonzero(mask)
    whole = np.hypot(np.ptp(rows) + 1, np.ptp(columns) + 1)
    largest = max(height * width for _, _, height, width in boxes)
    if len(boxes) == 1:
        assert longest == pytest.approx(2 * alone)
    # The largest part is at least as long as the diagonal of a square as large as the largest box.
    assert 2 * np.sqrt(2 * largest) <= longest + 1e-6 <= 2 * whole + 1e-5


def test_every_right_answer_is_one_of_the_sentences_and_is_read_as_its_truth():
    questions = questions_of(["presence", "location", "side", "size", "number", *(f"region: {p}" for p in PLACES)])
    findings = [finding((row, column, 6, size)) for row, column, size in product((4, 40, 80), (4, 40, 80), (4, 12))]
    findings += [finding((4, 4, 6, 60)), finding((4, 4, 9, 9), (60, 60, 9, 9))]
    seen: dict[str, set[str]] = {question.name: set() for question in questions}
    for question, one in product(questions, [*findings, None]):
        sentence = question.answer(one)
        assert sentence in question.answers and question.read(f" {sentence}\n") == question.truth(one)
        seen[question.name].add(question.truth(one))
        assert question.read(sentence.removesuffix(".")) is None
    assert seen["side"] == {*SIDES, NONE} and seen["size"] == {*SIZES, NONE} and seen["number"] == {*NUMBERS, NONE}
    assert seen["location"] == {*CELLS, NONE} and all(seen[f"region: {p}"] == {"yes", "no"} for p in PLACES)
    assert Question("side").read(Question("size").answer(findings[0])) is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["side"], "the first must be presence"),
        ([], "the first must be presence"),
        (["presence", "sides"], "'sides' is none of presence, location"),
        (["presence", "side", "side"], "side is asked twice"),
        (["presence", "region", "region: left half"], "region: left half is asked twice"),
        (["presence", "region: middle"], "only region has a place, and knows left half"),
        (["presence", "side: left half"], "only region has a place"),
    ],
)
def test_questions_that_are_not_clear_are_refused(asked, message):
    with pytest.raises(UsageError, match=message):
        questions_of(asked)


def test_region_alone_asks_for_every_half():
    assert [question.name for question in questions_of(["presence", "region"])] == [
        "presence",
        "region: left half",
        "region: right half",
        "region: top half",
        "region: bottom half",
    ]


def test_a_moved_map_keeps_what_its_mask_says():
    """A lesion drawn in the cover is found in the picture where the finding says it is, however it was moved."""
    cover = np.zeros((48, 48), np.float32)
    cover[10:16, 5:9] = 1
    shares = (np.argwhere(cover) + 0.5) / 48
    drawn = TumourFinding(shares.mean(axis=0), 1.0, 20.0, 1, spread_of(shares))
    example = replace(empty_example((0.1, 0.1, 0.7)), finding=drawn, cover=cover)
    moved_at_all = 0
    for seed in range(30):
        moved = move(example, np.random.default_rng(seed))
        places = moved.frame[:2] + (np.argwhere(moved.cover) + 0.5) / 48 * moved.frame[2]
        np.testing.assert_allclose(moved.finding.spread, spread_of(places), atol=1e-9)
        is_mirrored = not np.array_equal(moved.cover.any(axis=0), cover.any(axis=0))
        assert moved.finding.side == ("left" if is_mirrored else "right")
        assert (moved.finding.size, moved.finding.number) == ("1 to 3 cm", "one")
        moved_at_all += is_mirrored
    assert 5 < moved_at_all < 25


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """The project's own weights, as if their converter had learned all families."""
    folder = weights_for(tmp_path_factory.mktemp("weights") / "w", ALONE)
    restate(folder / CONVERTER, questions=json.dumps(ALL))
    return folder


def test_a_run_asks_several_questions_of_every_slice(weights, tmp_path):
    write_case(tmp_path / "data", "BraTS2021_00000", seed=0)
    asked = ["presence", "side", "size", "region: left half"]
    words = [*WORDS, f"models.weights={weights}", "llm.structured=true"]

    def run(name: str, questions: list[str]) -> Path:
        screen(
            str(tmp_path / "data"), str(tmp_path / name), load_settings(None, [*words, f"llm.questions={questions}"])
        )
        return tmp_path / name

    several = run("several", asked)
    rows = read_table(str(several / "questions.parquet")).to_pandas()
    assert list(rows["question"]) == asked * 3 and list(rows["slice_index"]) == [60] * 4 + [61] * 4 + [62] * 4
    assert rows["value"].notna().all()  # held to the sentences of its question
    truth = rows.set_index(["slice_index", "question"])["value_true"]
    assert truth[60].to_dict() == {"presence": "no", "side": "none", "size": "none", "region: left half": "no"}
    # A ball of 7 mm beside the middle: where it lies in the file is known, and so is the patient's side.
    stored = np.asarray(nib.load(next((tmp_path / "data").rglob("*_seg.nii.gz"))).dataobj)[:, :, 61] > 0
    x = np.argwhere(stored).mean(axis=0)[0]  # grows to the patient's left
    assert abs(x - 31.5) > 7 and truth[61, "side"] == ("left" if x > 31.5 else "right")
    assert truth[61, "region: left half"] == ("no" if x > 31.5 else "yes")  # the picture's left is the patient's right
    assert truth[61, "presence"] == "yes" and truth[61, "size"] == "1 to 3 cm"
    answers = read_table(str(next((several / "answers").glob("*.parquet")))).to_pandas()
    assert np.isnan(answers.loc[answers["question"].isin(["side", "size"]), "p_yes"]).all()
    assert answers.loc[~answers["question"].isin(["side", "size"]), "p_yes"].between(0, 1).all()
    measured = metric_rows(read_table(str(several / "metrics.parquet")))
    exact = {row.subset: row for row in measured if (row.metric, row.split) == ("question_accuracy", "all")}
    assert set(exact) == set(asked) and {row.n for row in exact.values()} == {3}
    right = (rows["value"] == rows["value_true"]).groupby(rows["question"]).mean()
    assert {name: row.value for name, row in exact.items()} == pytest.approx(right.to_dict())
    assert "Question, right value" in (several / "metrics.md").read_text()

    alone = run("alone", ["presence"])
    columns = ["case_id", "slice_index", "verdict", "location", "p_yes", "answer"]
    one, other = (pd.read_parquet(folder / "predictions.parquet")[columns] for folder in (alone, several))
    pd.testing.assert_frame_equal(one, other)
    assert not (alone / "questions.parquet").exists()


def test_a_run_held_to_the_grammar_has_the_same_rows_of_fewer_tokens(tmp_path):
    write_case(tmp_path / "data", "BraTS2021_00000", seed=0)
    tables = {}
    for structured in ("false", "true"):
        settings = load_settings(None, [*WORDS, f"llm.structured={structured}"])
        screen(str(tmp_path / "data"), str(tmp_path / structured), settings)
        tables[structured] = read_table(str(next((tmp_path / structured / "answers").glob("*.parquet")))).to_pandas()
    free, held = tables["false"], tables["true"]
    assert set(free["verdict"]) == {"yes", "no"}
    same = free.columns.drop(["tokens", "p_yes"])
    pd.testing.assert_frame_equal(free[same], held[same])
    np.testing.assert_allclose(free["p_yes"], held["p_yes"], atol=1e-5)
    assert (held["tokens"] < free["tokens"]).all()
    assert set(held["tokens"][held["verdict"] == "no"]) == {1}


def test_an_unlabelled_cohort_has_answers_to_all_questions_and_no_truth(weights, tmp_path):
    write_case(tmp_path / "data", "BraTS2021_00000", seed=0)
    next((tmp_path / "data").rglob("*_seg.nii.gz")).unlink()
    words = [*WORDS, f"models.weights={weights}", "llm.structured=true", "llm.questions=[presence, side]"]
    screen(str(tmp_path / "data"), str(tmp_path / "run"), load_settings(None, words))
    rows = pd.read_parquet(tmp_path / "run" / "questions.parquet")
    assert list(rows["question"]) == ["presence", "side"] * 3
    assert rows["value"].notna().all() and rows["value_true"].isna().all()
    measured = metric_rows(read_table(str(tmp_path / "run" / "metrics.parquet")))
    assert not [row for row in measured if row.metric.startswith("question_") and row.value is not None]


def test_copies_of_the_model_answer_questions_as_one_does(weights, tmp_path):
    write_case(tmp_path / "data", "BraTS2021_00000", seed=0)
    rows = []
    for name, copies in (("one", 1), ("two", 2)):
        words = [f"models.weights={weights}", "llm.questions=[presence, side, number]"]
        settings = load_settings(None, [*WORDS, *words, f"llm.data_parallel_size={copies}"])
        screen(str(tmp_path / "data"), str(tmp_path / name), settings)
        answers = pd.concat(map(pd.read_parquet, sorted((tmp_path / name / "answers").glob("*.parquet"))))
        rows.append((answers.drop(columns="p_yes"), answers["p_yes"].to_numpy(float)))
    pd.testing.assert_frame_equal(rows[0][0], rows[1][0])
    np.testing.assert_allclose(rows[0][1], rows[1][1], atol=1e-5)


def test_a_question_that_the_weights_have_not_learned_is_refused(weights, tmp_path):
    write_case(tmp_path / "data", "BraTS2021_00000", seed=0)
    assert converter_facts(weights).questions == ALL
    with pytest.raises(WeightsError, match="have not learned side, only presence;"):
        screen(
            str(tmp_path / "data"),
            str(tmp_path / "run"),
            load_settings(None, [*WORDS, "llm.questions=[presence, side]"]),
        )
    assert not (tmp_path / "run" / "slices").exists()


def test_what_the_weights_miss_is_said_before_any_number(weights, tmp_path):
    write_case(tmp_path / "data", "BraTS2021_00000", seed=0)
    folder = weights_for(tmp_path / "w", ALONE)
    card = json.loads((folder / "card.json").read_text())
    limits = "Trained on gliomas: most lesions of <b>MS</b> are\n missed."
    (folder / "card.json").write_text(json.dumps({**card, "limits": limits}))
    settings = load_settings(None, [*WORDS, f"models.weights={folder}"])
    results = screen(str(tmp_path / "data"), str(tmp_path / "run"), settings)
    assert "most lesions of &lt;b&gt;MS&lt;/b&gt; are missed." in Path(results.page).read_text()
    text = Path(results.metrics).read_text()
    assert text.index("Trained on gliomas") < text.index("## ") and "of \\<b>MS\\</b> are missed" in text


def test_a_question_is_worth_what_its_right_values_are():
    rows = pd.DataFrame(
        [
            ("A", "size", "1 to 3 cm", "1 to 3 cm"),
            ("A", "size", "over 3 cm", "1 to 3 cm"),  # the next one
            ("A", "size", "none", "under 1 cm"),  # no size is next to none
            ("B", "size", "none", "none"),
            ("B", "size", None, "none"),  # could not be read
            ("B", "size", "none", None),  # unlabelled
        ],
        columns=["patient", "question", "value", "value_true"],
    )
    by_metric = {each.metric: each for each in question_statistics(rows, ["A", "B"])}
    both, only_b = np.array([[1.0, 1.0]]), np.array([[0.0, 1.0]])
    values = {name: (each.n, each.values(both)[0], each.values(only_b)[0]) for name, each in by_metric.items()}
    assert values["question_accuracy"] == (5, pytest.approx(2 / 5), pytest.approx(1 / 2))
    assert values["question_commonest"][:2] == (5, pytest.approx(2 / 5))
    assert values["question_size_near"][:2] == (3, pytest.approx(2 / 3)) and np.isnan(values["question_size_near"][2])
    supervision = {name: supervision_of(name, "masks") for name in by_metric}
    assert supervision["question_commonest"] == "the labels themselves" and supervision["question_accuracy"] == "masks"


@pytest.mark.parametrize("names", [["presence"], ["presence", "side"]])
def test_a_part_whose_cases_were_all_rejected_has_answers_without_rows(names):
    keys = pa.table({"case_id": pa.array([], pa.string()), "slice_index": pa.array([], pa.int32())})
    rows = _answer_rows(keys, questions_of(names), [[] for _ in names], 2.0)
    assert len(rows) == 0 and rows.schema.names[: len(ANSWERS)] == ANSWERS.names


def test_the_temperature_of_p_yes_is_found_again_and_changes_no_verdict():
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 2, 4000)
    label = rng.random(4000) < expit(odds)
    too_sure = expit(3 * odds)
    assert fit_temperature(too_sure, label) == pytest.approx(3, rel=0.1)
    assert fit_temperature(too_sure, np.ones(4, bool)) == 1.0
    mended = tempered(too_sure, 3.0)
    np.testing.assert_allclose(mended, expit(odds), atol=1e-6)
    assert ((mended > 0.5) == (too_sure > 0.5)).all() and np.isfinite(tempered(np.array([0.0, 1.0]), 3.0)).all()


def test_a_run_has_the_temperature_of_its_weights(weights, tmp_path):
    write_case(tmp_path / "data", "BraTS2021_00000", seed=0)
    cold = weights_for(tmp_path / "w", ALONE)
    restate(cold / CONVERTER, temperature="2.5")
    assert converter_facts(cold).temperature == 2.5
    p_yes = []
    for name, folder in (("plain", weights), ("tempered", cold)):
        settings = load_settings(None, [*WORDS, f"models.weights={folder}"])
        screen(str(tmp_path / "data"), str(tmp_path / name), settings)
        p_yes.append(pd.read_parquet(tmp_path / name / "predictions.parquet")["p_yes"].to_numpy(float))
    own = converter_facts(weights).temperature
    np.testing.assert_allclose(p_yes[1], tempered(p_yes[0], 2.5 / own), rtol=1e-3, atol=1e-5)


def test_a_limit_below_the_longest_answer_is_refused(tmp_path):
    write_case(tmp_path / "data", "BraTS2021_00000", seed=0)
    with pytest.raises(UsageError, match=r"max_new_tokens=9: this LLM needs \d+ for 'Yes, there is an anomaly at the"):
        screen(str(tmp_path / "data"), str(tmp_path / "run"), load_settings(None, [*WORDS, "llm.max_new_tokens=9"]))


@pytest.mark.parametrize(
    ("name", "text"),
    [("questions", text) for text in ("[", "7", '{"a": 1}', "[1]")]
    + [("temperature", text) for text in ("", "0", "-1", "NaN", '"1"', "1e9")],
)
def test_damaged_facts_of_a_converter_are_named(weights, tmp_path, name, text):
    path = tmp_path / CONVERTER
    with open_tensors(weights / CONVERTER) as tensors:
        metadata = tensors.metadata()
    save_file(load_file(weights / CONVERTER), path, {**metadata, name: text})
    with pytest.raises(WeightsError, match=f"its {name} is damaged; get the file again"):
        converter_facts(tmp_path)


def test_runs_may_ask_what_was_right_often_enough_and_more_often_than_a_guess():
    scores = {
        "location": {"right": 0.9, "commonest_value": 0.4},
        "side": {"right": 0.79, "commonest_value": 0.3},
        "size": {"right": 0.8, "commonest_value": 0.8},
        "number": {"right": 0.85, "commonest_value": 0.84},
    }
    assert may_be_asked(scores, 0.8) == ["presence", "location", "number"]
    assert may_be_asked(scores, 0) == ["presence", *scores] and may_be_asked({}, 0.8) == ["presence"]

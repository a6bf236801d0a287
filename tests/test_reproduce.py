"""What a table of `medad reproduce` is made of: who is trained on whom, units, thresholds, averages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medad_core.config import SplitSettings, load_settings
from medad_core.data.names import patient_of
from medad_core.errors import ConfigError, StoreError
from medad_core.metrics import PixelHistogram
from medad_core.reproduce.decisions import seed_of_row
from medad_core.reproduce.experiment import (
    Experiment,
    ExperimentCase,
    check_experiment,
    experiment_fingerprint,
)
from medad_core.reproduce.folds import Fold, deal
from medad_core.reproduce.rows import derangement
from medad_core.reproduce.table import Cell, joined, make_table
from medad_core.reproduce.units import (
    ScoredUnit,
    Unit,
    failure_of,
    is_done,
    pending,
    read_unit,
    seeds_of,
    units_of,
    write_failure,
    write_unit,
)

SHARES = SplitSettings()

# --- folds ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 5), min_size=3, max_size=30),
    st.lists(st.integers(0, 5), max_size=8),
    st.sampled_from([1, 3, 4, 5]),
)
def test_every_patient_is_in_one_part_of_a_fold_and_tested_at_most_once(real, drawn, folds):
    counts = {f"BraTS-GLI-{number // 2:05d}-{number % 2:03d}": count for number, count in enumerate(real)}
    phantoms = {f"Phantom_{number:05d}": count for number, count in enumerate(drawn)}
    dealt = deal(
        counts | phantoms, {case: patient_of(case) for case in counts | phantoms}, set(phantoms), folds, SHARES
    )
    for fold in dealt:
        parts = [{patient_of(case) for case in part} for part in (fold.train, fold.validation, fold.test)]
        assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    tested = [case for fold in dealt for case in fold.test]
    assert len(tested) == len(set(tested))
    if folds > 1:
        assert set(tested) == set(counts) | set(phantoms)


def test_tumour_free_slices_are_spread_over_tests_and_left_for_training_and_validation():
    counts = {f"case_{number:02d}": 10 if number < 3 else 0 for number in range(12)}
    for fold in deal(counts, {case: case for case in counts}, (), 3, SHARES):
        for part in (fold.train, fold.validation, fold.test):
            assert sum(counts[case] > 0 for case in part) == 1


def test_phantoms_are_dealt_apart_from_patients():
    counts = {f"case_{number:02d}": 1 for number in range(9)}
    alone = deal(counts, {case: case for case in counts}, (), 3, SHARES)
    phantoms = {f"Phantom_{number}": 1 for number in range(6)}
    together = deal(counts | phantoms, {case: case for case in counts | phantoms}, set(phantoms), 3, SHARES)
    for before, after in zip(alone, together, strict=True):
        assert before.test == tuple(case for case in after.test if case in counts)
        assert sum(case in phantoms for case in after.test) == 2


# --- settings and units ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("reproduce.folds=2", "choose 1, or 3 and more"),
        ("reproduce.rows=[shuffled]", "shuffled takes the answers of proposed"),
        ("reproduce.rows=[patchwork]", "rows"),
        ("reproduce.seeds=[1, 1]", "names one twice"),
        ("reproduce.lesion_area_mm2=[100, 50]", "must rise"),
        ("reproduce.baselines.image_size=100", "multiple of 16"),
    ],
)
def test_settings_that_make_no_table_are_refused(word, text):
    with pytest.raises(ConfigError, match=text):
        load_settings(None, [word])


def test_rows_that_train_through_the_llm_may_have_fewer_seeds_and_untrained_rows_one():
    chosen = load_settings(None, ["reproduce.seeds=[3, 4, 5]", "reproduce.llm_seeds=2"]).reproduce
    counts = {"proposed": 2, "shuffled": 2, "autoencoder": 3, "without-llm": 3, "brightness": 1, "majority": 1}
    assert {row: len(seeds_of(row, chosen)) for row in counts} == counts
    assert len(units_of(chosen, 2)) == 2 * (3 * 6 + 2 * 3 + 2)


def frame(case_ids, split="test", seed=0, fold_labels=None) -> pd.DataFrame:
    """Four slices a case, two with tumour, scores that tell them apart but for noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for case_id in case_ids:
        for index in range(4):
            label = int(index >= 2) if fold_labels is None else fold_labels
            rows.append(
                (
                    case_id,
                    60 + index,
                    split,
                    label,
                    300.0 * label,
                    0.3 * label + rng.random() * 0.5,
                    "left" if label else None,
                )
            )
    made = pd.DataFrame(
        rows, columns=["case_id", "slice_index", "split", "label", "area_mm2", "score", "location_true"]
    )
    return made.assign(map_score=None, answer=None, answer_parsed=None, verdict=None, location=None)


def histograms(case_ids, seed=0) -> dict[str, PixelHistogram]:
    rng = np.random.default_rng(seed)
    by_case = {}
    mask = np.zeros((16, 16), bool)
    mask[4:8, 4:8] = True
    for case_id in case_ids:
        by_case[case_id] = PixelHistogram()
        by_case[case_id].accumulate(np.clip(rng.random((16, 16)) * 0.6 + 0.35 * mask, 0, 1).astype(np.float32), mask)
    return by_case


def test_a_unit_comes_back_as_it_was_written(tmp_path):
    unit, scored = (
        Unit("autoencoder", 0, 1),
        ScoredUnit(frame(["a", "b"]), histograms(["a", "b"]), {("a", 61): np.full((8, 8), 7, np.uint8)}),
    )
    write_failure(str(tmp_path), unit, "no such luck")
    assert failure_of(str(tmp_path), unit) == "fold 0, seed 1: no such luck"
    write_unit(str(tmp_path), unit, scored)
    assert is_done(str(tmp_path), unit) and failure_of(str(tmp_path), unit) is None
    again = read_unit(str(tmp_path), unit)
    assert again.training_error is None
    write_unit(str(tmp_path), unit, replace(scored, training_error=0.75))
    assert read_unit(str(tmp_path), unit).training_error == 0.75
    assert again.frame["score"].tolist() == scored.frame["score"].tolist()
    assert again.histograms["b"].aupro == scored.histograms["b"].aupro
    np.testing.assert_array_equal(again.thumbnails["a", 61], scored.thumbnails["a", 61])


def test_units_without_scores_are_pending_and_say_so(tmp_path):
    units = [Unit("autoencoder", 0, 0), Unit("autoencoder", 0, 1)]
    write_unit(str(tmp_path), units[0], ScoredUnit(frame(["a"]), {}, {}))
    assert pending(str(tmp_path), units) == units[1:]
    assert failure_of(str(tmp_path), units[1]) == "fold 0, seed 1: not run yet"


@settings(deadline=None)
@given(st.integers(2, 60), st.integers(0, 1000))
def test_a_shuffled_slice_never_keeps_its_own_map(count, seed):
    rows = np.arange(5, 5 + count)
    order = derangement(rows, np.random.default_rng(seed))
    assert sorted(order) == rows.tolist()
    assert (order != rows).all()


# --- decisions ------------------------------------------------------------------------------------------------------


def experiment_of(folds: int = 2) -> Experiment:
    names = [f"case_{number}" for number in range(6)]
    dealt = [Fold(train=(names[4],), validation=(names[fold],), test=(names[2 + fold],)) for fold in range(folds)]
    cases = tuple(
        ExperimentCase(case_id=name, phantom=False, features="", pictures="", first_slice=60, pixel_mm2=1.0)
        for name in names
    )
    return Experiment(root="somewhere", fingerprint={}, cases=cases, rejected=(), folds=tuple(dealt))


def scored_folds(experiment: Experiment, **changes) -> list[ScoredUnit]:
    made = []
    for number, fold in enumerate(experiment.folds):
        both = pd.concat(
            [frame(fold.validation, "validation", seed=number), frame(fold.test, "test", seed=10 + number)],
            ignore_index=True,
        )
        made.append(ScoredUnit(both.assign(**changes), histograms([*fold.validation, *fold.test], number), {}))
    return made


def test_thresholds_come_from_the_validation_patients_of_the_same_fold():
    experiment, chosen = experiment_of(), load_settings()
    folds = scored_folds(experiment)
    made = seed_of_row("autoencoder", "patients", experiment, folds, chosen)
    for number, scored in enumerate(folds):
        held = scored.frame[scored.frame["split"] == "validation"]
        [threshold] = [
            item.threshold
            for item in made.thresholds
            if (item.fold, item.level, item.threshold.rule) == (number, "image", "max_recall")
        ]
        assert threshold.value == held.loc[held["label"] == 1, "score"].min()
        decided = dict(
            zip(
                zip(made.frame["case_id"], made.frame["slice_index"], strict=True),
                made.units.decisions[0].verdict,
                strict=True,
            )
        )
        test = scored.frame[scored.frame["split"] == "test"]
        assert [decided[row.case_id, row.slice_index] for row in test.itertuples()] == (
            test["score"] >= threshold.value
        ).astype(float).tolist()


def test_test_labels_change_no_threshold():
    experiment, chosen = experiment_of(), load_settings()
    folds = scored_folds(experiment)
    turned = [
        ScoredUnit(
            scored.frame.assign(
                label=scored.frame["label"].where(scored.frame["split"] == "validation", 1 - scored.frame["label"])
            ),
            scored.histograms,
            {},
        )
        for scored in folds
    ]
    before, after = (
        seed_of_row("autoencoder", "patients", experiment, given, chosen).thresholds for given in (folds, turned)
    )
    assert [item.threshold.value for item in before] == [item.threshold.value for item in after]


def test_an_answer_that_cannot_be_read_is_wrong_whatever_the_label():
    experiment, chosen = experiment_of(1), load_settings()
    unread = {"answer": "Perhaps.", "answer_parsed": False, "verdict": None}
    made = seed_of_row("proposed", "patients", experiment, scored_folds(experiment, **unread), chosen)
    cells = {(cell.level, cell.metric, cell.rule): cell.values(np.ones((1, 1)))[0] for cell in made.statistics}
    assert cells["image", "accuracy", "answer"] == 0
    assert cells["text", "unparsed_share", ""] == 1
    assert (made.units.decisions[0].settled(made.units.label) == 1 - made.frame["label"]).all(), (
        "the gallery shows them as errors"
    )
    assert cells["patient", "sensitivity", "any/answer"] == cells["patient", "sensitivity", "mean/answer"] == 0


def test_validation_of_one_class_leaves_the_cells_empty_with_the_reason():
    experiment, chosen = experiment_of(), load_settings()
    folds = scored_folds(experiment)
    folds[1] = ScoredUnit(
        folds[1].frame.assign(label=folds[1].frame["label"].where(folds[1].frame["split"] == "test", 1)),
        folds[1].histograms,
        {},
    )
    made = seed_of_row("autoencoder", "patients", experiment, folds, chosen)
    [cell] = [
        cell for cell in made.statistics if (cell.level, cell.metric, cell.rule) == ("image", "accuracy", "youden")
    ]
    assert np.isnan(cell.values(np.ones((1, 2)))[0])
    assert cell.undefined == "fold 1: nothing tumour-free to validate on"


def written(out: Path, experiment: Experiment, rows: tuple[str, ...], seeds=(0, 1), **changes) -> None:
    answers = {
        "answer": "Yes, there is an anomaly at the left of the image.",
        "answer_parsed": True,
        "verdict": "yes",
        "location": "left",
        "map_score": 0.7,
    }
    for row in rows:
        for fold, number in enumerate(range(len(experiment.folds))):
            for seed in seeds:
                given = scored_folds(experiment, **(answers if row == "proposed" else {}), **changes)[number]
                noise = np.random.default_rng([seed, len(row)]).random(len(given.frame)) * 0.2
                write_unit(
                    str(out),
                    Unit(row, fold, seed),
                    ScoredUnit(given.frame.assign(score=given.frame["score"] * 0.8 + noise), given.histograms, {}),
                )


def test_a_table_averages_seeds_and_compares_with_the_proposed_scheme_on_the_same_slices(tmp_path):
    experiment = experiment_of()
    chosen = load_settings(
        None, ["reproduce.rows=[autoencoder, proposed]", "reproduce.seeds=[0, 1]", "evaluate.bootstrap=50"]
    )
    written(tmp_path, experiment, ("autoencoder", "proposed"))
    lines = (
        make_table(str(tmp_path), experiment, chosen)
        .lines.to_pandas()
        .set_index(["row", "level", "metric", "rule", "subset"])
        .sort_index()
    )
    each = []
    for seed in (0, 1):
        tests = [
            read_unit(str(tmp_path), Unit("autoencoder", fold, seed)).frame.query("split == 'test'") for fold in (0, 1)
        ]
        pairs = [
            test.loc[test["label"] == 1, "score"].to_numpy()[:, None]
            - test.loc[test["label"] == 0, "score"].to_numpy()[None]
            for test in tests
        ]
        each.append(np.mean([gaps > 0 for gaps in pairs]))
    autoencoder = lines.loc[("autoencoder", "image", "auroc", "", "all")]
    assert autoencoder["value"] == pytest.approx(np.mean(each))
    assert autoencoder["sd"] == pytest.approx(np.std(each, ddof=1))
    reference = lines.loc[("proposed", "image", "auroc", "", "all")]
    assert autoencoder["difference"] == pytest.approx(autoencoder["value"] - reference["value"])
    assert np.isnan(reference["difference"])
    accuracy = lines.loc[("autoencoder", "image", "accuracy", "f1", "all")]
    assert accuracy["difference"] == pytest.approx(
        accuracy["value"] - lines.loc[("proposed", "image", "accuracy", "answer", "all"), "value"]
    )


def test_a_row_of_which_one_unit_failed_has_no_numbers_at_all(tmp_path):
    experiment = experiment_of()
    chosen = load_settings(
        None, ["reproduce.rows=[autoencoder, patchcore]", "reproduce.seeds=[0, 1]", "evaluate.bootstrap=10"]
    )
    written(tmp_path, experiment, ("autoencoder", "patchcore"))
    (tmp_path / "rows/patchcore/fold-1-seed-0.parquet").unlink()
    write_failure(str(tmp_path), Unit("patchcore", 1, 0), "out of luck")
    table = make_table(str(tmp_path), experiment, chosen)
    assert table.failed == {"patchcore": "fold 1, seed 0: out of luck"}
    assert set(table.lines["row"].to_pylist()) == {"autoencoder"}


@pytest.mark.parametrize(
    ("suffix", "damage"), [(".npz", b"junk"), (".npz", None), (".parquet", b""), (".npz", b"PK\x03\x04half")]
)
def test_a_damaged_file_costs_its_row_with_the_reason_and_the_next_run_makes_it_anew(tmp_path, suffix, damage):
    experiment = experiment_of()
    chosen = load_settings(None, ["reproduce.rows=[autoencoder, patchcore]", "evaluate.bootstrap=10"])
    written(tmp_path, experiment, ("autoencoder", "patchcore"), seeds=(0,))
    file, unit = tmp_path / f"rows/patchcore/fold-1-seed-0{suffix}", Unit("patchcore", 1, 0)
    file.unlink() if damage is None else file.write_bytes(damage)
    table = make_table(str(tmp_path), experiment, chosen)
    assert set(table.failed) == {"patchcore"} and table.failed["patchcore"].startswith(
        "fold 1, seed 0: its files are damaged"
    )
    assert set(table.lines["row"].to_pylist()) == {"autoencoder"}
    assert pending(str(tmp_path), [Unit("patchcore", 0, 0), unit]) == [unit]
    assert failure_of(str(tmp_path), unit) == table.failed["patchcore"]


def test_a_difference_is_taken_over_the_seeds_that_both_rows_have(tmp_path):
    experiment = experiment_of()
    chosen = load_settings(
        None,
        [
            "reproduce.rows=[autoencoder, proposed]",
            "reproduce.seeds=[0, 1]",
            "reproduce.llm_seeds=1",
            "evaluate.bootstrap=20",
        ],
    )
    written(tmp_path, experiment, ("autoencoder",))
    written(tmp_path, experiment, ("proposed",), seeds=(0,))
    alone = load_settings(None, ["reproduce.rows=[autoencoder, proposed]", "evaluate.bootstrap=20"])
    both, one = (
        make_table(str(tmp_path), experiment, given)
        .lines.to_pandas()
        .query("row == 'autoencoder'")
        .set_index(["level", "metric", "rule", "subset"])
        for given in (chosen, alone)
    )
    key = ("image", "auroc", "", "all")
    assert both.loc[key, "seeds"] == 2 and (both["value"].dropna() != one["value"].dropna()).any()
    for column in ("difference", "difference_low", "difference_high", "p_bootstrap", "p_delong"):
        assert both.loc[key, column] == pytest.approx(one.loc[key, column], nan_ok=True)


def test_a_size_that_differs_between_seeds_is_not_given():
    key = ("text", "location_exact", "", "true_positive")
    one, two = (Cell((0,), np.array([0.5]), np.zeros((1, 3)), n, "") for n in (7, 9))
    assert joined((0, 1), [(key, one), (key, two)])[1].n is None
    assert joined((0, 1), [(key, one), (key, one)])[1].n == 7


def test_what_a_fold_says_of_everyone_is_at_chance_however_folds_differ(tmp_path):
    experiment = experiment_of()
    chosen = load_settings(None, ["reproduce.rows=[majority]", "evaluate.bootstrap=20"])
    for fold, scored in enumerate(scored_folds(experiment)):
        write_unit(
            str(tmp_path), Unit("majority", fold, 0), ScoredUnit(scored.frame.assign(score=0.6 + 0.3 * fold), {}, {})
        )
    lines = make_table(str(tmp_path), experiment, chosen).lines.to_pandas().set_index(["level", "metric"]).sort_index()
    [auroc] = lines.loc[[("image", "auroc")], "value"]
    assert auroc == 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["flow.max_workers=2"], "flow.runner=process"),
        (["train.first_slice=70"], r"leaves out slices \[60\]"),
        (["train.last_slice=90"], r"leaves out slices \[100\]"),
    ],
)
def test_settings_under_which_numbers_would_mean_something_else_are_refused(tmp_path, words, message):
    from flows.preflight import check_reproducing

    with pytest.raises(ConfigError, match=message):
        check_reproducing(str(tmp_path), load_settings(None, words))


def test_scores_that_are_not_numbers_leave_cells_empty_with_the_reason(tmp_path):
    experiment = experiment_of()
    chosen = load_settings(None, ["reproduce.rows=[autoencoder]", "evaluate.bootstrap=10"])
    written(tmp_path, experiment, ("autoencoder",), seeds=(0,))
    unit = Unit("autoencoder", 1, 0)
    broken = read_unit(str(tmp_path), unit)
    scores = broken.frame["score"].to_numpy(copy=True)
    scores[-1] = np.nan
    write_unit(str(tmp_path), unit, ScoredUnit(broken.frame.assign(score=scores), broken.histograms, {}))
    lines = (
        make_table(str(tmp_path), experiment, chosen)
        .lines.to_pandas()
        .set_index(["level", "metric", "rule", "subset"])
        .sort_index()
    )
    cell = lines.loc[("image", "auroc", "", "all")]
    assert np.isnan(cell["value"]) and cell["reason"] == "1 scores are not numbers"
    assert not np.isnan(lines.loc[("pixel", "auroc", "", "all"), "value"])


def test_intervals_need_two_patients_and_say_so(tmp_path):
    experiment = experiment_of(1)
    chosen = load_settings(None, ["reproduce.rows=[autoencoder]", "evaluate.bootstrap=10"])
    written(tmp_path, experiment, ("autoencoder",), seeds=(0,))
    lines = make_table(str(tmp_path), experiment, chosen).lines.to_pandas().set_index(["level", "metric"]).sort_index()
    cell = lines.loc[[("image", "auroc")]].iloc[0]
    assert not np.isnan(cell["value"]) and np.isnan(cell["ci_low"])
    assert cell["reason"] == "no interval from one patient"


def test_a_study_of_other_settings_is_refused_by_name(tmp_path):
    chosen = load_settings()
    experiment = experiment_of().model_copy(update={"fingerprint": experiment_fingerprint(chosen)})
    (tmp_path / "study.json").write_text(experiment.model_dump_json())
    check_experiment(str(tmp_path), experiment_fingerprint(chosen))
    check_experiment(
        str(tmp_path), experiment_fingerprint(load_settings(None, ["reproduce.seeds=[7]", "evaluate.bootstrap=9"]))
    )
    with pytest.raises(StoreError, match=r"reproduce\.folds \(there 1, now 3\).*choose another --out"):
        check_experiment(str(tmp_path), experiment_fingerprint(load_settings(None, ["reproduce.folds=3"])))

"""What is measured of one row: hand-worked counts, scikit-learn as the reference, and cells that must stay empty."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

from medad_core.metrics import PixelHistogram
from medad_core.metrics.bootstrap import patient_weights
from medad_core.metrics.decisions import Decision
from medad_core.metrics.statistic import Statistic
from medad_core.reproduce.measures import RowUnits, row_statistics

# Patient 0: three slices, two with tumour. Patient 1: three, one. Patient 2: two, none.
PATIENT = np.array([0, 0, 0, 1, 1, 1, 2, 2])
LABEL = np.array([1, 1, 0, 1, 0, 0, 0, 0], float)
SCORE = np.array([0.9, 0.4, 0.5, 0.8, 0.3, 0.1, 0.6, 0.2])
AREA = np.array([50, 900, 0, 3000, 0, 0, 0, 0], float)
VERDICTS = (SCORE >= 0.5).astype(float)
MEAN_VERDICTS = np.array([1.0, 0.0, 0.0])


def histogram(seed: int) -> PixelHistogram:
    rng = np.random.default_rng(seed)
    counted = PixelHistogram()
    mask = np.zeros((20, 20), bool)
    if seed < 2:
        mask[4:9, 4:9] = True
    counted.accumulate(np.clip(rng.random((20, 20)) * 0.6 + 0.4 * mask, 0, 1).astype(np.float32), mask)
    return counted


ROW = RowUnits(
    patient=PATIENT,
    fold=np.zeros(3, int),
    label=LABEL,
    score=SCORE,
    probability=True,
    decisions=(Decision("youden", VERDICTS),),
    area_mm2=AREA,
    patient_decisions_mean=(Decision("youden", MEAN_VERDICTS),),
    k=2,
    histograms=[histogram(seed) for seed in range(3)],
    pixel_thresholds=np.full(3, 0.4),
    pixel_reason=None,
)


def statistics_of(row: RowUnits, edges=(100.0, 1000.0)) -> dict[tuple[str, str, str, str], Statistic]:
    return {(s.level, s.metric, s.rule, s.subset): s for s in row_statistics(row, edges)}


def value(row: RowUnits, *key: str) -> float:
    return float(statistics_of(row)[key].values(np.ones((1, row.patients)))[0])


def test_curves_equal_scikit_learn():
    assert value(ROW, "image", "auroc", "", "all") == pytest.approx(roc_auc_score(LABEL, SCORE))
    assert value(ROW, "image", "ap", "", "all") == pytest.approx(average_precision_score(LABEL, SCORE))


def test_decisions_equal_scikit_learn():
    assert value(ROW, "image", "balanced_accuracy", "youden", "all") == pytest.approx(
        balanced_accuracy_score(LABEL, VERDICTS)
    )
    assert value(ROW, "image", "f1", "youden", "all") == pytest.approx(f1_score(LABEL, VERDICTS))
    assert value(ROW, "image", "accuracy", "youden", "all") == pytest.approx(5 / 8)
    assert value(ROW, "image", "sensitivity", "youden", "tumour") == pytest.approx(2 / 3)
    assert value(ROW, "image", "specificity", "youden", "tumour_free") == pytest.approx(3 / 5)


def test_sensitivity_by_lesion_size_counts_each_slice_in_its_bin():
    rows = statistics_of(ROW)
    small, middle, large = (
        rows["image", "sensitivity", "youden", f"area {words}"]
        for words in ("0 to 100 mm²", "100 to 1000 mm²", "from 1000 mm²")
    )
    assert [row.n for row in (small, middle, large)] == [1, 1, 1]
    assert [float(row.values(np.ones((1, 3)))[0]) for row in (small, middle, large)] == [1, 0, 1]


def test_calibration_error_worked_by_hand():
    # Two bins: four slices at 0.1 of which one has tumour, four at 0.9 of which two have.
    # |0.1 - 0.25| / 2 + |0.9 - 0.5| / 2.
    row = replace(
        ROW, score=np.array([0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9]), label=np.array([1, 0, 0, 0, 1, 1, 0, 0], float)
    )
    assert value(row, "image", "ece", "", "all") == pytest.approx(0.275)


def test_calibration_of_a_score_that_is_no_probability_is_empty_with_its_reason():
    cell = statistics_of(replace(ROW, probability=False))["image", "ece", "", "all"]
    assert np.isnan(cell.values(np.ones((1, 3)))[0])
    assert cell.undefined == "the score is no probability"


@pytest.mark.parametrize(("rule", "expected"), [("any", 0.5), ("k_of_n", 1.0), ("mean", 1.0)])
def test_patients_are_ranked_by_highest_kth_highest_and_mean_score(rule, expected):
    # Patients 0 and 1 have tumour, 2 has none.
    # Highest: 0.9, 0.5, 0.6. Second highest: 0.5, 0.3, 0.2. Mean: 0.6, 0.3, 0.25.
    row = replace(ROW, score=np.array([0.9, 0.4, 0.5, 0.5, 0.3, 0.1, 0.6, -0.1]))
    if rule == "k_of_n":
        row = replace(row, score=np.array([0.9, 0.4, 0.5, 0.5, 0.3, 0.1, 0.6, 0.2]))
    assert value(row, "patient", "auroc", rule, "all") == pytest.approx(expected)


def test_a_patient_is_positive_by_any_slice_by_k_slices_or_by_its_mean():
    # Slices verdicts yes: patient 0 two, patient 1 one, patient 2 one.
    assert value(ROW, "patient", "sensitivity", "any/youden", "tumour") == 1
    assert value(ROW, "patient", "specificity", "any/youden", "tumour_free") == 0
    assert value(ROW, "patient", "sensitivity", "k_of_n/youden", "tumour") == 0.5
    assert value(ROW, "patient", "specificity", "k_of_n/youden", "tumour_free") == 1
    assert value(ROW, "patient", "sensitivity", "mean/youden", "tumour") == 0.5


def test_an_undecided_slice_leaves_its_patient_undecided_only_where_it_could_change_the_verdict():
    verdicts = VERDICTS.copy()
    verdicts[[1, 4]] = np.nan  # patient 0 has a yes without it; patient 1 too, and one of two needed for k of n
    row = replace(ROW, decisions=(Decision("youden", verdicts, "fold 0: no reason"),))
    assert value(row, "patient", "sensitivity", "any/youden", "tumour") == 1
    assert np.isnan(value(row, "patient", "sensitivity", "k_of_n/youden", "tumour"))


def test_one_score_that_is_no_number_empties_every_cell_that_rests_on_it():
    scores = SCORE.copy()
    scores[3] = np.nan
    rows = statistics_of(replace(ROW, score=scores))
    for key in (("image", "auroc", "", "all"), ("image", "ap", "", "all"), ("image", "ece", "", "all")):
        assert np.isnan(rows[key].values(np.ones((1, 3)))[0])
        assert rows[key].undefined == "1 scores are not numbers"
    assert np.isnan(rows["patient", "auroc", "mean", "all"].values(np.ones((1, 3)))[0])


@pytest.mark.parametrize(("rule", "k"), [("any", 2), ("k_of_n", 2), ("mean", 2)])
def test_a_patient_with_a_score_that_is_no_number_has_no_score_however_it_is_made(rule, k):
    scores = SCORE.copy()
    scores[0] = np.nan  # the other two of patient 0 would still have a second highest
    cell = statistics_of(replace(ROW, score=scores, k=k))["patient", "auroc", rule, "all"]
    assert np.isnan(cell.values(np.ones((1, 3)))[0])
    assert cell.undefined == "1 scores are not numbers"


def test_a_patient_of_fewer_than_k_slices_is_no_patient_without_tumour():
    rows = statistics_of(replace(ROW, k=3))  # patient 2 has two slices
    for key in (("patient", "auroc", "k_of_n", "all"), ("patient", "specificity", "k_of_n/youden", "tumour_free")):
        assert np.isnan(rows[key].values(np.ones((1, 3)))[0])
        assert rows[key].undefined == "1 patients have fewer than 3 slices"
    assert rows["patient", "auroc", "any", "all"].values(np.ones((1, 3)))[0] == 1


def test_decisions_that_a_missing_score_left_open_say_so():
    scores, verdicts = SCORE.copy(), VERDICTS.copy()
    scores[0], verdicts[0] = np.nan, np.nan
    rows = statistics_of(replace(ROW, score=scores, decisions=(Decision("youden", verdicts),)))
    assert rows["image", "accuracy", "youden", "all"].undefined == "1 scores are not numbers"
    assert (
        statistics_of(replace(ROW, decisions=(Decision("youden", verdicts),)))[
            "image", "accuracy", "youden", "all"
        ].undefined
        == "1 slices undecided"
    )


def test_a_lesion_of_unknown_size_empties_every_bin():
    area = AREA.copy()
    area[0] = np.nan
    cells = [cell for cell in row_statistics(replace(ROW, area_mm2=area), (100.0,)) if cell.subset.startswith("area")]
    assert len(cells) == 2
    assert all(
        np.isnan(cell.values(np.ones((1, 3)))[0]) and cell.undefined == "1 slices with tumour have no area"
        for cell in cells
    )


def test_a_lesion_on_an_edge_belongs_to_the_bin_above():
    rows = statistics_of(replace(ROW, area_mm2=np.array([100, 900, 0, 1000, 0, 0, 0, 0], float)))
    assert [
        rows["image", "sensitivity", "youden", f"area {words}"].n
        for words in ("0 to 100 mm²", "100 to 1000 mm²", "from 1000 mm²")
    ] == [0, 2, 1]


def test_scores_outside_0_and_1_have_no_calibration_error():
    cell = statistics_of(replace(ROW, score=SCORE * 2))["image", "ece", "", "all"]
    assert np.isnan(cell.values(np.ones((1, 3)))[0])
    assert cell.undefined == "scores outside [0, 1]"


def test_undecided_slices_empty_the_cells_of_their_rule_and_no_others():
    verdicts = VERDICTS.copy()
    verdicts[0] = np.nan
    rows = statistics_of(
        replace(
            ROW,
            decisions=(
                Decision("youden", verdicts, "fold 1: nothing tumour-free to validate on"),
                Decision("max_recall", VERDICTS),
            ),
        )
    )
    cell = rows["image", "accuracy", "youden", "all"]
    assert np.isnan(cell.values(np.ones((1, 3)))[0])
    assert cell.undefined == "fold 1: nothing tumour-free to validate on"
    assert rows["image", "accuracy", "max_recall", "all"].values(np.ones((1, 3)))[0] == pytest.approx(5 / 8)


def test_of_one_class_only_what_needs_two_is_empty():
    rows = statistics_of(replace(ROW, label=np.ones(8)))
    for metric in ("accuracy", "balanced_accuracy", "f1"):
        assert np.isnan(rows["image", metric, "youden", "all"].values(np.ones((1, 3)))[0])
        assert rows["image", metric, "youden", "all"].undefined == "one class only: no tumour-free slices"
    assert np.isnan(rows["image", "auroc", "", "all"].values(np.ones((1, 3)))[0])
    assert rows["image", "sensitivity", "youden", "tumour"].values(np.ones((1, 3)))[0] == pytest.approx(4 / 8)


def test_maps_are_measured_by_their_histograms_and_thresholds():
    total = ROW.histograms[0] + ROW.histograms[1] + ROW.histograms[2]
    assert value(ROW, "pixel", "auroc", "", "all") == pytest.approx(total.auroc)
    assert value(ROW, "pixel", "ap", "", "all") == pytest.approx(total.average_precision)
    assert value(ROW, "pixel", "aupro", "", "all") == pytest.approx(total.aupro)
    assert value(ROW, "pixel", "dice", "validation", "tumour") == pytest.approx(total.dice(0.4))
    assert value(ROW, "pixel", "dice", "0.5", "tumour") == pytest.approx(total.dice(0.5))


def test_dice_takes_each_patient_at_its_own_threshold():
    row = replace(ROW, pixel_thresholds=np.array([0.2, 0.7, 0.4]))
    overlaps = np.array([h.overlap(limit) for h, limit in zip(ROW.histograms[:2], (0.2, 0.7), strict=True)])
    assert value(row, "pixel", "dice", "validation", "tumour") == pytest.approx(
        overlaps[:, 0].sum() / overlaps[:, 1].sum()
    )


def test_a_row_with_maps_and_one_without_have_the_same_cells():
    without = replace(ROW, histograms=None, pixel_thresholds=None, pixel_reason="this row draws no map of its own")
    assert list(statistics_of(ROW)) == list(statistics_of(without))


def test_a_row_without_maps_has_empty_pixel_cells_with_the_reason():
    row = replace(ROW, histograms=None, pixel_thresholds=None, pixel_reason="this row draws no map of its own")
    cells = [cell for cell in row_statistics(row, (100.0,)) if cell.level == "pixel"]
    assert len(cells) == 5
    assert all(
        np.isnan(cell.values(np.ones((1, 3)))[0]) and cell.undefined == "this row draws no map of its own"
        for cell in cells
    )


def test_a_patient_drawn_twice_counts_like_two_patients():
    weights = np.array([[2.0, 0.0, 1.0]])
    rows = np.r_[np.flatnonzero(PATIENT == 0), np.flatnonzero(PATIENT == 0), np.flatnonzero(PATIENT == 2)]
    twice = statistics_of(ROW)
    assert twice["image", "auroc", "", "all"].values(weights)[0] == pytest.approx(
        roc_auc_score(LABEL[rows], SCORE[rows])
    )
    assert twice["image", "accuracy", "youden", "all"].values(weights)[0] == pytest.approx(
        (LABEL[rows] == VERDICTS[rows]).mean()
    )


def test_weights_of_one_give_the_value_and_drawn_patients_give_what_those_patients_would():
    # Patient 1 drawn twice and patient 2 once, as a row of its own.
    rows, numbers = np.r_[3:6, 3:6, 6:8], np.repeat([0, 1, 2], [3, 3, 2])
    drawn = RowUnits(
        patient=numbers,
        fold=np.zeros(3, int),
        label=LABEL[rows],
        score=SCORE[rows],
        probability=True,
        decisions=(Decision("youden", VERDICTS[rows]),),
        area_mm2=AREA[rows],
        patient_decisions_mean=(Decision("youden", MEAN_VERDICTS[[1, 1, 2]]),),
        k=2,
        histograms=[ROW.histograms[n] for n in (1, 1, 2)],
        pixel_thresholds=np.full(3, 0.4),
        pixel_reason=None,
    )
    expected = statistics_of(drawn)
    for key, cell in statistics_of(ROW).items():
        assert cell.values(np.array([[0.0, 2.0, 1.0]]))[0] == pytest.approx(
            expected[key].values(np.ones((1, 3)))[0], nan_ok=True
        ), key


def test_every_statistic_takes_any_weights():
    weights = patient_weights(3, 200, 0)
    for cell in row_statistics(ROW, (100.0, 1000.0)):
        values = cell.values(weights)
        assert values.shape == (200,)
        assert np.isnan(values).all() or (np.nanmin(values) >= 0 and np.nanmax(values) <= 1)


def of_fold(row: RowUnits, fold: int) -> np.ndarray:
    """Slices of one fold."""
    return row.fold[row.patient] == fold


def test_scores_of_two_folds_are_never_ranked_against_each_other():
    # Patients 0 and 1 in fold 0, 2 and 3 in fold 1, whose model scores everything a thousand times higher.
    patient = np.r_[PATIENT, np.full(3, 3)]
    label, score = np.r_[LABEL, 1, 1, 0], np.r_[SCORE, 0.7, 0.3, 0.1]
    fold = np.array([0, 0, 1, 1])
    score = np.where(fold[patient] == 1, 1000 * score, score)
    row = replace(
        ROW,
        patient=patient,
        fold=fold,
        label=label,
        score=score,
        area_mm2=np.zeros(11),
        decisions=(),
        patient_decisions_mean=(),
        probability=False,
        histograms=None,
    )
    folds = [of_fold(row, number) for number in (0, 1)]
    pairs = np.array([label[own].sum() * (1 - label[own]).sum() for own in folds])
    expected = pairs @ [roc_auc_score(label[own], score[own]) for own in folds] / pairs.sum()
    assert value(row, "image", "auroc", "", "all") == pytest.approx(expected)
    assert abs(expected - roc_auc_score(label, score)) > 0.1, "pooled, it would be another number"
    precisions = [average_precision_score(label[own], score[own]) for own in folds]
    assert value(row, "image", "ap", "", "all") == pytest.approx(pairs @ precisions / pairs.sum())
    constant = replace(row, score=np.where(fold[patient] == 1, 0.9, 0.8))
    assert value(constant, "image", "auroc", "", "all") == 0.5


def test_a_bootstrap_draw_counts_patients_within_their_folds():
    row = replace(ROW, fold=np.array([0, 1, 1]))
    auroc = statistics_of(row)["image", "auroc", "", "all"].values
    drawn = auroc(np.array([[0.0, 2, 1]]))[0]
    expected = roc_auc_score(LABEL[3:], SCORE[3:], sample_weight=[2, 2, 2, 1, 1])
    assert drawn == pytest.approx(expected)
    assert np.isnan(auroc(np.array([[0.0, 0, 3]]))[0]), "no fold has both classes"


def test_where_no_fold_has_both_classes_the_reason_says_so():
    row = replace(ROW, label=np.array([1, 1, 1, 0, 0, 0, 0, 0], float), fold=np.array([0, 1, 1]))
    cell = statistics_of(row)["image", "auroc", "", "all"]
    assert (
        np.isnan(cell.values(np.ones((1, 3)))[0]) and cell.undefined == "one class only in every fold of these slices"
    )


def test_pixels_of_two_folds_are_ranked_apart():
    shifted = [histogram(0), histogram(1), histogram(2)]
    mask, rng = np.zeros((20, 20), bool), np.random.default_rng(7)
    mask[2:6, 2:6] = True
    other = PixelHistogram()
    other.accumulate((np.clip(rng.random((20, 20)) * 0.6 + 0.4 * mask, 0, 1) * 0.01).astype(np.float32), mask)
    row = replace(ROW, fold=np.array([0, 1, 1]), histograms=[shifted[0], other, PixelHistogram()])
    assert value(row, "pixel", "auroc", "", "all") == pytest.approx(
        (16 * 384 * other.auroc + 25 * 375 * shifted[0].auroc) / (16 * 384 + 25 * 375), abs=1e-6
    )
    assert value(row, "pixel", "aupro", "", "all") == pytest.approx((other.aupro + shifted[0].aupro) / 2)


def test_what_was_not_read_is_wrong_for_the_slice_and_never_a_yes_for_its_patient():
    # Patient 0: two tumour slices answered no, the tumour-free one not read. Patient 1 reads right. Patient 2: no, and
    # one not read.
    verdicts = np.array([0, 0, np.nan, 1, 0, 0, 0, np.nan])
    row = replace(ROW, decisions=(Decision("answer", verdicts, undecided_is_wrong=True),), patient_decisions_mean=())
    assert value(row, "image", "specificity", "answer", "tumour_free") == pytest.approx(3 / 5)
    assert value(row, "patient", "sensitivity", "any/answer", "tumour") == 0.5
    assert value(row, "patient", "specificity", "any/answer", "tumour_free") == 0, "patient 2 could have been a yes"
    assert value(row, "patient", "specificity", "k_of_n/answer", "tumour_free") == 1, (
        "one unread answer cannot make two"
    )

"""One engine: what a policy leaves out or leaves undefined, how slices become patients, and how numbers are printed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from medad_core.metrics.bootstrap import estimate, patient_weights
from medad_core.metrics.decisions import Decision, decision_statistics
from medad_core.metrics.names import MAIN_METRICS, metric_name
from medad_core.metrics.patients import highest_scores, majority_vote, mean_scores, patient_units, vote
from medad_core.metrics.printed import interval_text, markdown_table, value_text
from medad_core.metrics.scores import score_statistics
from medad_core.metrics.statistic import COHORT, COMPARISON, Statistic
from medad_core.metrics.units import Units

# Patient 0: three slices, two with tumour. Patient 1: three, one. Patient 2: two, none.
PATIENT = np.array([0, 0, 0, 1, 1, 1, 2, 2])
LABEL = np.array([1, 1, 0, 1, 0, 0, 0, 0], float)
SCORE = np.array([0.9, 0.4, 0.5, 0.8, 0.3, 0.1, 0.6, 0.2])
SLICES = Units("image", PATIENT, np.zeros(3, int), LABEL)


def value(statistic: Statistic) -> float:
    return estimate(statistic.values, np.zeros((0, 3))).value


def by_metric(statistics: list[Statistic]) -> dict[str, Statistic]:
    return {statistic.metric: statistic for statistic in statistics}


def test_a_slice_without_a_score_is_left_out_of_a_cohort_and_leaves_a_comparison_undefined():
    score = SCORE.copy()
    score[3] = np.nan
    known = ~np.isnan(score)
    auroc, _ = score_statistics(SLICES, score, COHORT)
    assert (value(auroc), auroc.n) == (pytest.approx(roc_auc_score(LABEL[known], score[known])), 7)
    auroc, _ = score_statistics(SLICES, score, COMPARISON)
    assert np.isnan(value(auroc))
    assert (auroc.undefined, auroc.n) == ("1 scores are not numbers", 8)


def test_an_undecided_slice_is_wrong_or_takes_the_numbers_of_its_rule():
    verdict = (SCORE >= 0.5).astype(float)
    verdict[[0, 7]] = np.nan  # a right yes and a right no
    wrong = by_metric(decision_statistics(SLICES, Decision("answer", verdict, undecided_is_wrong=True), COMPARISON))
    assert value(wrong["sensitivity"]) == pytest.approx(1 / 3)
    assert value(wrong["specificity"]) == pytest.approx(2 / 5)
    assert value(wrong["accuracy"]) == pytest.approx(3 / 8)
    unknown = by_metric(decision_statistics(SLICES, Decision("youden", verdict), COMPARISON))
    assert all(np.isnan(value(unknown[metric])) for metric in ("accuracy", "sensitivity", "specificity", "f1"))
    assert unknown["accuracy"].undefined == "2 slices undecided"


def test_a_slice_that_was_not_asked_for_does_not_count():
    asked = np.array([1, 1, 0, 1, 1, 0, 1, 1], bool)
    verdict = (SCORE >= 0.5).astype(float)
    decided = by_metric(decision_statistics(SLICES, Decision("answer", verdict, asked=asked), COHORT))
    expected = balanced_accuracy_score(LABEL[asked], verdict[asked])
    assert (value(decided["balanced_accuracy"]), decided["accuracy"].n) == (pytest.approx(expected), 6)
    nobody = decision_statistics(SLICES, Decision("answer", verdict, asked=np.zeros(8, bool)), COHORT)
    assert nobody[0].undefined == "no answers for labelled slices"


def test_of_one_class_a_cohort_has_an_accuracy_and_a_comparison_has_none():
    sick = Units("image", PATIENT, np.zeros(3, int), np.ones(8))
    decision = Decision("answer", (SCORE >= 0.5).astype(float))
    assert value(decision_statistics(sick, decision, COHORT)[0]) == 0.5
    accuracy = decision_statistics(sick, decision, COMPARISON)[0]
    assert np.isnan(value(accuracy))
    assert accuracy.undefined == "one class only: no tumour-free slices"


@given(st.lists(st.tuples(st.integers(0, 4), st.one_of(st.none(), st.integers(0, 9))), max_size=30), st.integers(1, 4))
def test_the_kth_highest_score_of_a_patient_is_that_of_a_sorted_list(rows, k):
    patient = np.array([number for number, _ in rows], int)
    score = np.array([np.nan if number is None else number for _, number in rows], float)
    slices = Units("image", patient, np.zeros(5, int), np.zeros(len(rows)))
    for policy in (COHORT, COMPARISON):
        for number, highest in enumerate(highest_scores(slices, score, k, policy)):
            own = score[patient == number]
            known = sorted(own[~np.isnan(own)])
            complete = policy.leave_out or len(known) == len(own)
            expected = known[-k] if complete and len(known) >= k else np.nan
            assert highest == pytest.approx(expected, nan_ok=True)


def test_patients_have_a_mean_score_and_tumour_where_any_slice_has():
    assert mean_scores(SLICES, SCORE) == pytest.approx([0.6, 0.4, 0.4])
    assert patient_units(SLICES).label.tolist() == [1, 1, 0]
    assert patient_units(Units("image", PATIENT, np.zeros(3, int), np.full(8, np.nan))).labelled.tolist() == [False] * 3


def test_a_vote_is_open_only_where_open_slices_could_turn_it():
    verdict = np.array([1, np.nan, np.nan, np.nan, 0, 0, 0, 0])
    decision = Decision("answer", verdict)
    assert vote(SLICES, decision, least=1).verdict == pytest.approx([1, np.nan, 0], nan_ok=True)
    assert vote(SLICES, decision, least=2).verdict == pytest.approx([np.nan, 0, 0], nan_ok=True)
    assert majority_vote(SLICES, decision).verdict == pytest.approx([np.nan, 0, 0], nan_ok=True)


def test_an_estimate_has_the_value_and_the_draws_of_the_same_function():
    auroc, _ = score_statistics(SLICES, SCORE, COHORT)
    weights = patient_weights(3, 40, seed=0)
    measured = estimate(auroc.values, weights)
    assert measured.value == pytest.approx(roc_auc_score(LABEL, SCORE))
    assert np.array_equal(measured.replicates, auroc.values(weights), equal_nan=True)
    assert measured.interval.low <= measured.value <= measured.interval.high


def test_numbers_are_printed_alike():
    assert [value_text(None), value_text(0.12345), value_text(-0.25), value_text(0.5, digits=2)] == [
        "–",
        "0.123",
        "−0.250",
        "0.50",
    ]
    assert interval_text(0.1, 0.25) == "0.100 to 0.250"
    assert interval_text(None, 0.25) == interval_text(0.1, None) == "–"
    assert interval_text(0.1, 0.2, between="--") == "0.100--0.200"


def test_a_short_row_of_a_markdown_table_ends_in_empty_cells():
    table = markdown_table(["metric", "value", "n"], [["AUROC", "0.5", "7"], ["failed"]], "lrr")
    assert table.splitlines() == [
        "| metric | value | n |",
        "| --- | ---: | ---: |",
        "| AUROC | 0.5 | 7 |",
        "| failed |  |  |",
    ]


def test_every_headline_metric_has_a_plain_name():
    assert all(metric_name(metric) != metric.replace("_", " ") for metric, _ in MAIN_METRICS)

"""Thresholds chosen on validation scores: which one, and when there is none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_curve

from medad_core.metrics import PixelHistogram
from medad_core.metrics.thresholds import choose_pixel_threshold, choose_threshold

SCORES = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
LABELS = np.array([0, 1, 0, 0, 1, 1], bool)


def test_highest_recall_is_reached_at_the_lowest_score_of_a_positive():
    assert choose_threshold(SCORES, LABELS, "max_recall").value == 0.2


def test_youden_takes_the_greatest_sum_of_sensitivity_and_specificity():
    # From 0.5: sensitivity 2/3, specificity 1. From 0.2: sensitivity 1, specificity 1/3.
    assert choose_threshold(SCORES, LABELS, "youden").value == 0.5


def test_f1_takes_the_greatest_f1():
    # From 0.5: precision 1, recall 2/3, F1 0.8. From 0.2: precision 3/5, recall 1, F1 0.75.
    assert choose_threshold(SCORES, LABELS, "f1").value == 0.5


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=40).filter(
        lambda rows: len({label for _, label in rows}) == 2
    )
)
def test_choices_are_as_good_as_any_that_scikit_learn_finds(rows):
    scores, labels = np.array([score for score, _ in rows], float), np.array([label for _, label in rows])
    false_rate, true_rate, _ = roc_curve(labels, scores)

    def at(rule: str) -> np.ndarray:
        return scores >= choose_threshold(scores, labels, rule).value

    verdict = at("youden")
    assert verdict[labels].mean() - verdict[~labels].mean() == pytest.approx((true_rate - false_rate)[1:].max())
    assert f1_score(labels, at("f1")) == pytest.approx(max(f1_score(labels, scores >= cut) for cut in scores))
    assert at("max_recall")[labels].all()


def test_of_equally_good_thresholds_the_highest_wins():
    # From 3: sensitivity 1/3, specificity 1. From 2: sensitivity 1, specificity 1/3. Rounded, 1 - 2/3 is more than 1/3.
    scores, labels = np.array([3, 2, 2, 2, 2, 1]), np.array([1, 1, 1, 0, 0, 0], bool)
    assert choose_threshold(scores, labels, "youden").value == 3
    # From 4: one of one right and one of three found, F1 1/2. From 1: three of nine right and all found, F1 1/2.
    scores, labels = np.array([4, 1, 1, 1, 1, 1, 1, 1, 1, 0]), np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 0], bool)
    assert choose_threshold(scores, labels, "f1").value == 4


def test_equal_scores_are_decided_alike():
    threshold = choose_threshold(np.array([0.5, 0.5, 0.1]), np.array([True, False, False]), "youden")
    assert threshold.value == 0.5


@pytest.mark.parametrize(
    ("scores", "labels", "rule", "reason"),
    [
        ([], [], "f1", "nothing to validate on"),
        ([0.1, np.nan], [0, 1], "max_recall", "1 validation scores are not numbers"),
        ([0.1, 0.2], [0, 0], "max_recall", "nothing with tumour"),
        ([0.1, 0.2], [1, 1], "youden", "nothing tumour-free"),
        ([0.1, 0.2], [1, 1], "f1", "nothing tumour-free"),
    ],
)
def test_no_threshold_where_validation_does_not_allow_one(scores, labels, rule, reason):
    threshold = choose_threshold(np.array(scores, float), np.array(labels, bool), rule)
    assert threshold.value is None
    assert reason in threshold.reason


def test_pixel_threshold_has_the_greatest_dice():
    rng = np.random.default_rng(0)
    mask = np.zeros((64, 64), bool)
    mask[10:30, 10:30] = True
    anomaly_map = np.clip(0.2 + 0.3 * mask + rng.normal(0, 0.08, mask.shape), 0, 1).astype(np.float32)
    histogram = PixelHistogram()
    histogram.accumulate(anomaly_map, mask)
    chosen = choose_pixel_threshold(histogram).value
    best = max(
        (2 * (mask & (anomaly_map >= cut)).sum() / (mask.sum() + (anomaly_map >= cut).sum()), cut)
        for cut in np.linspace(0, 1, 400)
    )
    assert 0.3 < chosen < 0.45
    assert histogram.dice(chosen) == pytest.approx(best[0], abs=2e-3)


def test_no_pixel_threshold_without_tumour():
    histogram = PixelHistogram()
    histogram.accumulate(np.full((4, 4), 0.3, np.float32), np.zeros((4, 4), bool))
    assert choose_pixel_threshold(histogram).value is None

"""Paired comparisons: DeLong against a plain implementation, and what the bootstrap can and cannot show."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from medad_core.metrics.comparison import delong, paired_difference


def plain_delong(ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(difference, p) from the definition: every positive against every negative."""
    placements = []
    for scores in (ours, theirs):
        wins = (scores[labels][:, None] > scores[~labels][None]) + 0.5 * (
            scores[labels][:, None] == scores[~labels][None]
        )
        placements.append((wins.mean(axis=1), wins.mean(axis=0)))
    gap = placements[0][0].mean() - placements[1][0].mean()
    variance = sum(
        (placements[0][kind] - placements[1][kind]).var(ddof=1) / len(placements[0][kind]) for kind in (0, 1)
    )
    return gap, 2 * norm.sf(abs(gap) / np.sqrt(variance))


@pytest.mark.parametrize("seed", range(4))
def test_delong_equals_the_plain_quadratic_form_with_ties(seed):
    rng = np.random.default_rng(seed)
    labels = rng.random(120) < 0.4
    ours, theirs = np.round(labels + rng.normal(0, 1, 120), 1), np.round(0.4 * labels + rng.normal(0, 1, 120), 1)
    difference, p = plain_delong(ours, theirs, labels)
    gap = delong(ours, theirs, labels, np.zeros(len(labels)))
    assert gap.p == pytest.approx(p, rel=1e-9)
    assert (gap.low + gap.high) / 2 == pytest.approx(difference)
    assert difference == pytest.approx(roc_auc_score(labels, ours) - roc_auc_score(labels, theirs))


def test_delong_worked_by_hand():
    # Tumour at 4 and 2, others at 3 and 1, against a score that is always the same: AUROC 0.75 and 0.5.
    # Placements of the tumours differ by 1/2 and 0, those of the others by 0 and 1/2: variance 1/8 in each class,
    # over two items 1/16, together 1/8.
    gap = delong(np.array([4.0, 2, 3, 1]), np.ones(4), np.array([1, 1, 0, 0], bool), np.zeros(4))
    half = 1.959964 * np.sqrt(1 / 8)
    assert (gap.low, gap.high) == pytest.approx((0.25 - half, 0.25 + half), abs=1e-6)
    assert gap.p == pytest.approx(0.479500, abs=1e-6)  # two-sided, z = 0.25 / sqrt(1/8) = 0.7071


def test_delong_claims_nothing_where_no_placement_varies():
    gap = delong(
        np.array([0.8, 0.9, 0.1, 0.2]), np.array([0.1, 0.2, 0.8, 0.9]), np.array([1, 1, 0, 0], bool), np.zeros(4)
    )
    assert (gap.low, gap.high, gap.p) == (None, None, None)
    assert "no variance" in gap.reason


def test_delong_of_a_detector_with_itself_is_one():
    rng = np.random.default_rng(0)
    scores, labels = rng.random(50), rng.random(50) < 0.5
    assert delong(scores, scores, labels, np.zeros(len(labels))).p == 1


def test_delong_holds_its_level_when_there_is_no_difference():
    rng = np.random.default_rng(0)
    small = 0
    for _ in range(400):
        labels = np.arange(160) < 60
        small += (
            delong(labels + rng.normal(0, 1.5, 160), labels + rng.normal(0, 1.5, 160), labels, np.zeros(160)).p < 0.05
        )
    assert 0.02 < small / 400 < 0.09


@pytest.mark.parametrize(
    ("ours", "labels", "reason"),
    [([0.1, np.nan, 0.3, 0.4], [1, 1, 0, 0], "not numbers"), ([0.1, 0.2, 0.3, 0.4], [1, 1, 1, 1], "of a class")],
)
def test_delong_is_undefined_with_its_reason(ours, labels, reason):
    gap = delong(np.array(ours), np.array([0.4, 0.3, 0.2, 0.1]), np.array(labels, bool), np.zeros(4))
    assert gap.p is None
    assert reason in gap.reason


def test_paired_bootstrap_p_is_twice_the_smaller_side():
    gaps = np.r_[np.full(30, -1.0), np.full(970, 1.0)]
    assert paired_difference(gaps, np.zeros(1000)).p == pytest.approx(2 * 31 / 1001)


def test_paired_bootstrap_never_claims_more_than_its_draws_can_show():
    assert paired_difference(np.ones(999), np.zeros(999)).p == pytest.approx(2 / 1000)


def test_draws_without_a_value_are_left_out_and_too_many_leave_nothing():
    few = np.r_[np.full(100, np.nan), np.ones(900)]
    assert "100 of 1000" in paired_difference(few, np.zeros(1000)).reason
    many = np.r_[np.full(600, np.nan), np.ones(400)]
    gap = paired_difference(many, np.zeros(1000))
    assert (gap.low, gap.p) == (None, None)
    assert "600 of 1000" in gap.reason


def test_strata_are_compared_apart_and_weigh_their_pairs():
    rng = np.random.default_rng(3)
    labels = rng.random(90) < 0.5
    strata = np.repeat([0, 1], [60, 30])
    ours, theirs = labels + rng.normal(0, 1, 90) + 100 * strata, labels + rng.normal(0, 1.5, 90) - 100 * strata
    parts = [strata == 0, strata == 1]
    pairs = np.array([labels[own].sum() * (~labels[own]).sum() for own in parts])
    gaps = [roc_auc_score(labels[own], ours[own]) - roc_auc_score(labels[own], theirs[own]) for own in parts]
    gap = delong(ours, theirs, labels, strata)
    assert (gap.low + gap.high) / 2 == pytest.approx(pairs @ gaps / pairs.sum())
    halves = [delong(ours[own], theirs[own], labels[own], np.zeros(own.sum())) for own in parts]
    widths = np.array([half.high - half.low for half in halves])
    assert gap.high - gap.low == pytest.approx(np.sqrt((pairs / pairs.sum()) ** 2 @ widths**2))


def test_a_stratum_of_one_class_takes_no_part_and_one_of_a_single_negative_allows_no_test():
    labels, strata = np.array([1, 1, 0, 0, 1, 1], bool), np.array([0, 0, 0, 0, 1, 1])
    ours, theirs = np.array([0.9, 0.4, 0.5, 0.1, 0.2, 0.3]), np.array([0.2, 0.9, 0.3, 0.8, 0.1, 0.7])
    alone = delong(ours[:4], theirs[:4], labels[:4], strata[:4])
    assert delong(ours, theirs, labels, strata) == alone
    labels[5] = False
    assert delong(ours, theirs, labels, strata).reason == "fewer than two items of a class"

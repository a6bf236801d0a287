"""Is one detector better than another on the same patients?

One decision: two answers, with what each takes for granted. The paired bootstrap draws patients and holds for any
metric; DeLong's test takes slices for independent, which they are not, and so gives the smaller p: it is there
because readers ask for it. Sources: DeLong, DeLong and Clarke-Pearson 1988; Sun and Xu 2014 for the fast form.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata

from medad_core.metrics.arrays import AnyArray, BoolArray, FloatArray
from medad_core.metrics.bootstrap import interval


@dataclass(frozen=True)
class Gap:
    """A paired difference: 95 % interval and two-sided p; None with a `reason` where there is none."""

    low: float | None
    high: float | None
    p: float | None
    reason: str | None


def paired_difference(ours: FloatArray, theirs: FloatArray) -> Gap:
    """Gap between two metrics from their replicates (B,) of the same draws, without those where either is undefined.

    p is twice the smaller share of draws on either side of zero, at least 2 / (B + 1): a bootstrap cannot show less.
    """
    gaps = np.asarray(ours, float) - np.asarray(theirs, float)
    spread = interval(gaps, patients=2)
    if spread.low is None:
        return Gap(None, None, None, spread.reason)
    defined = gaps[~np.isnan(gaps)]
    tail = min((defined <= 0).sum(), (defined >= 0).sum())
    return Gap(spread.low, spread.high, float(min(1.0, 2 * (tail + 1) / (len(defined) + 1))), spread.reason)


def delong(ours: FloatArray, theirs: FloatArray, labels: BoolArray, strata: AnyArray) -> Gap:
    """DeLong's test of two AUROCs on the same N items: `ours`, `theirs` (N,) scores, `labels` (N,) bool, `strata` (N,).

    Strata (folds) are independent samples, each ranked by itself; they weigh as many pairs as they have, as in
    `ranking.within_strata`.
    """
    labels = np.asarray(labels, bool)
    scores = np.stack([np.asarray(ours, float), np.asarray(theirs, float)])
    if np.isnan(scores).any():
        return Gap(None, None, None, "scores that are not numbers")
    parts = [strata == stratum for stratum in np.unique(strata)]
    ranked = [part for part in parts if labels[part].any() and not labels[part].all()]
    positives = np.array([labels[part].sum() for part in ranked])
    negatives = np.array([(~labels[part]).sum() for part in ranked])
    if not ranked or min(*positives, *negatives) < 2:
        return Gap(None, None, None, "fewer than two items of a class")
    pairs = positives * negatives
    shares = pairs / pairs.sum()
    gaps, variances = np.array([_gap_and_variance(scores[:, part], labels[part]) for part in ranked]).T
    gap = float(shares @ gaps)
    variance = float(shares**2 @ variances)
    if variance <= 0:
        # Both separate, or confuse, the classes without exception: normal theory would claim certainty from few items.
        if gap == 0:
            return Gap(0.0, 0.0, 1.0, None)
        return Gap(None, None, None, "no variance to test the difference against")
    half = norm.ppf(0.975) * np.sqrt(variance)
    return Gap(float(gap - half), float(gap + half), float(2 * norm.sf(abs(gap) / np.sqrt(variance))), None)


def _gap_and_variance(scores: FloatArray, labels: BoolArray) -> tuple[float, float]:
    """Difference of the AUROCs of two scores (2, N), and its variance."""
    wins, losses = _placements(scores, labels)
    return float(wins.mean(axis=1) @ [1, -1]), _contrast(wins) / wins.shape[1] + _contrast(losses) / losses.shape[1]


def _placements(scores: FloatArray, labels: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Share of negatives below each positive (2, P), and of positives above each negative (2, Q); ties count half."""
    positive = scores[:, labels]
    negative = scores[:, ~labels]
    pooled = rankdata(np.concatenate([positive, negative], axis=1), axis=1)
    count = positive.shape[1]
    wins = (pooled[:, :count] - rankdata(positive, axis=1)) / negative.shape[1]
    losses = 1 - (pooled[:, count:] - rankdata(negative, axis=1)) / count
    return wins, losses


def _contrast(placements: FloatArray) -> float:
    """Variance of the difference of the two rows."""
    return float(np.array([1, -1]) @ np.cov(placements) @ np.array([1, -1]))

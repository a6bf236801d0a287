"""Area under the ROC and under the precision-recall curve from counts per score.

One decision: both take the positives and negatives counted at each distinct score, in ascending order along the last
axis. Slices weighted by a bootstrap, and histograms of millions of pixels, are then the same thing, and a whole batch
of replicates is one array operation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from medad_core.metrics.arrays import AnyArray, BoolArray, FloatArray, IntArray

# 4 million float64 values are 32 MB, small beside a model and large enough for numpy to run at memory speed.
_CHUNK_VALUES = 4_000_000

_ROUNDING = 1e-9  # of shares that are sums of floats

Curve = Callable[[AnyArray, AnyArray], FloatArray]
Values = Callable[[FloatArray], FloatArray]


def auroc(positives: AnyArray, negatives: AnyArray) -> FloatArray:
    """Probability that a positive scores above a negative, ties counted half (Mann-Whitney).

    `positives`, `negatives`: (..., G) weights at G ascending scores. Returns (...,) in [0, 1]; NaN where a class is
    absent.
    """
    positives = np.asarray(positives, float)
    negatives = np.asarray(negatives, float)
    below = np.cumsum(negatives, axis=-1) - negatives / 2
    pairs = positives.sum(axis=-1) * negatives.sum(axis=-1)
    return ratio((positives * below).sum(axis=-1), pairs)


def average_precision(positives: AnyArray, negatives: AnyArray) -> FloatArray:
    """Mean precision over the recall steps, as scikit-learn defines it (no interpolation).

    Shapes as in `auroc`; NaN where there is no positive, or no negative (it would be 1 whatever the score says).
    """
    positives, negatives, hits, called = _descending(positives, negatives)
    return _mean_precision(positives, negatives, hits, called)


def average_precision_of_levels(positives: AnyArray, negatives: AnyArray, tied: BoolArray) -> FloatArray:
    """`average_precision` of scores known only by their level; those of a level are one score where `tied` (G,) bool.

    Counting any other level as a tie would be pessimistic by a thousandth. Its positives are taken to be spread
    evenly among its negatives instead: the middle one has half of the level's negatives above it. Pure levels stay
    exact.
    """
    positives, negatives, hits, called = _descending(positives, negatives)
    behind = np.where(tied[::-1], 0, np.maximum(positives - 1, 0) / 2)
    negatives_behind = np.where(tied[::-1], 0, negatives / 2)
    return _mean_precision(positives, negatives, hits - behind, called - behind - negatives_behind)


def aupro(region_share: FloatArray, regions: FloatArray, negatives: FloatArray, limit: float) -> FloatArray:
    """AUPRO: area under the per-region overlap curve up to a false positive rate of `limit`, divided by it.

    `region_share` (..., G): share of each region at G ascending levels, summed over regions; `regions` (...,) their
    number; `negatives` (..., G) other pixels. Returns (...,) in [0, 1]; NaN without regions or without other pixels.
    Source: Bergmann et al. 2021.
    """
    region_share = np.asarray(region_share, float)
    negatives = np.asarray(negatives, float)
    overlap = ratio(np.cumsum(region_share[..., ::-1], axis=-1), np.asarray(regions, float)[..., None])
    rate = ratio(np.cumsum(negatives[..., ::-1], axis=-1), negatives.sum(axis=-1)[..., None])
    start = np.zeros((*rate.shape[:-1], 1))
    overlap = np.concatenate([start, overlap], axis=-1)
    rate = np.concatenate([start, rate], axis=-1)
    step = np.diff(overlap, axis=-1)
    width = np.diff(rate, axis=-1)
    # The part of each trapezoid that lies left of the limit, its upper edge cut there.
    inside = np.clip(limit - rate[..., :-1], 0, width)
    share = np.divide(inside, width, out=np.zeros_like(width), where=width > 0)
    area = (inside * (overlap[..., :-1] + step * share / 2)).sum(axis=-1)
    return np.where(np.isnan(overlap[..., -1]) | np.isnan(rate[..., -1]), np.nan, area / limit)


def sensitivity_at(specificity: float) -> Curve:
    """The highest sensitivity at which at least a share `specificity` of the negatives scores below the threshold."""

    def curve(positives: AnyArray, negatives: AnyArray) -> FloatArray:
        found, false_alarms = _rates(positives, negatives)
        best: FloatArray = np.where(false_alarms <= 1 - specificity + _ROUNDING, found, 0.0 * found).max(axis=-1)
        return best

    return curve


def specificity_at(sensitivity: float) -> Curve:
    """The highest specificity at which at least a share `sensitivity` of the positives reaches the threshold."""

    def curve(positives: AnyArray, negatives: AnyArray) -> FloatArray:
        found, false_alarms = _rates(positives, negatives)
        best: FloatArray = np.where(found >= sensitivity - _ROUNDING, 1 - false_alarms, 0.0 * found).max(axis=-1)
        return best

    return curve


def _rates(positives: AnyArray, negatives: AnyArray) -> tuple[FloatArray, FloatArray]:
    """Shares of positives and of negatives at or above each score (..., G + 1), from none of them to all.

    NaN where a class is absent.
    """
    shares = []
    for counts in (positives, negatives):
        above = np.cumsum(np.asarray(counts, float)[..., ::-1], axis=-1)
        start = np.zeros((*above.shape[:-1], 1))
        shares.append(ratio(np.concatenate([start, above], axis=-1), above[..., -1:]))
    absent = np.isnan(shares[0]) | np.isnan(shares[1])
    return np.where(absent, np.nan, shares[0]), np.where(absent, np.nan, shares[1])


def _descending(positives: AnyArray, negatives: AnyArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Positives, negatives, positives so far and everything so far, from the highest score down."""
    positives = np.asarray(positives, float)[..., ::-1]
    negatives = np.asarray(negatives, float)[..., ::-1]
    hits = np.cumsum(positives, axis=-1)
    return positives, negatives, hits, hits + np.cumsum(negatives, axis=-1)


def _mean_precision(positives: AnyArray, negatives: AnyArray, hits: FloatArray, called: FloatArray) -> FloatArray:
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    mean = ratio((positives * precision).sum(axis=-1), positives.sum(axis=-1))
    return np.where(negatives.sum(axis=-1) > 0, mean, np.nan)


def weighted_curve(
    curve: Curve, scores: FloatArray, labels: BoolArray, groups: IntArray, weights: FloatArray
) -> FloatArray:
    """`curve` of N scored items, once for every row of weights over their groups (patients).

    `scores` (N,) float, `labels` (N,) bool, `groups` (N,) int column of `weights` (B, P). Returns (B,).
    """
    replicates = len(weights)
    if not len(scores):
        return np.full(replicates, np.nan)
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])
    labels = labels[order]
    groups = groups[order]
    out = np.empty(replicates)
    step = max(1, _CHUNK_VALUES // len(scores))
    for first in range(0, replicates, step):
        chunk = weights[first : first + step, groups]
        positives = np.add.reduceat(chunk * labels, starts, axis=1)
        out[first : first + step] = curve(positives, np.add.reduceat(chunk, starts, axis=1) - positives)
    return out


def within_strata(values: Values, pairs: Values, strata: AnyArray) -> Values:
    """A curve metric taken within each stratum and averaged, each weighing as many pairs as it has.

    So no pair across strata is ever ranked. `values` and `pairs` map patient weights (B, P) to the metric (B,) and to
    the number of pairs that it ranks (B,); `strata` (P,). Of AUROC this is the share of right pairs among all within
    strata.
    """
    parts = [strata == stratum for stratum in np.unique(strata)]

    def combined(weights: FloatArray) -> FloatArray:
        within = np.array([values(weights * part) for part in parts])
        sizes = np.where(np.isnan(within), 0.0, [pairs(weights * part) for part in parts])
        return ratio((np.nan_to_num(within) * sizes).sum(axis=0), sizes.sum(axis=0))

    return combined if len(parts) > 1 else values


def ratio(part: AnyArray, whole: AnyArray) -> FloatArray:
    """`part / whole` with NaN where `whole` is zero: an undefined metric, not a bad one."""
    numerator, denominator = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    undefined = np.full(denominator.shape, np.nan)
    return np.asarray(np.divide(numerator, denominator, out=undefined, where=denominator > 0))

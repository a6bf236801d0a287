"""What anomaly maps are worth: pixel curves, AUPRO and Dice from one histogram a patient.

One decision: histograms add, so a patient that is drawn twice counts its pixels twice, and no pixel is looked at again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medad_core.metrics import ranking
from medad_core.metrics.arrays import FloatArray, IntArray
from medad_core.metrics.pixel import FPR_LIMIT, PixelHistogram
from medad_core.metrics.ranking import Values
from medad_core.metrics.statistic import Statistic

# Replicates go through in batches: a thousand of them at once would hold gigabytes for a large cohort.
_BATCH = 64


def pixel_statistics(histograms: Sequence[PixelHistogram], fold: IntArray | None = None) -> list[Statistic]:
    """AUROC, average precision and AUPRO over pixels, in this order, from one histogram a patient; at least one.

    `fold` (P,): patients whose maps are of one model, within which the curves are taken (`ranking.within_strata`);
    None: all are of one.
    """
    strata = np.zeros(len(histograms), int) if fold is None else fold
    classes = np.array([histogram.classes() for histogram in histograms], float)
    positives = classes[:, 0]
    negatives = classes[:, 1]
    region_share = np.array([histogram.region_share for histogram in histograms])
    regions = np.array([histogram.regions for histogram in histograms], float)
    tumour_pixels = positives.sum(axis=1)
    other_pixels = negatives.sum(axis=1)
    tied = histograms[0].tied

    def auroc(weights: FloatArray) -> FloatArray:
        return ranking.auroc(weights @ positives, weights @ negatives)

    def precision(weights: FloatArray) -> FloatArray:
        return ranking.average_precision_of_levels(weights @ positives, weights @ negatives, tied)

    def aupro(weights: FloatArray) -> FloatArray:
        return ranking.aupro(weights @ region_share, weights @ regions, weights @ negatives, FPR_LIMIT)

    def pairs_of_pixels(weights: FloatArray) -> FloatArray:
        return np.asarray((weights @ tumour_pixels) * (weights @ other_pixels))

    def number_of_regions(weights: FloatArray) -> FloatArray:
        return np.asarray(weights @ regions)

    pixels = sum(histogram.pixels for histogram in histograms)
    return [
        Statistic(
            metric,
            "pixel",
            "all",
            pixels,
            _in_batches(ranking.within_strata(values, sizes, strata)),
            "no labelled pixels of both classes",
        )
        for metric, values, sizes in (
            ("auroc", auroc, pairs_of_pixels),
            ("ap", precision, pairs_of_pixels),
            ("aupro", aupro, number_of_regions),
        )
    ]


def pooled_dice(histograms: Sequence[PixelHistogram], thresholds: FloatArray, rule: str = "") -> Statistic:
    """Dice over all pixels of tumour slices, each patient's map cut at its own threshold (P,)."""
    twice_hit, sizes = _overlaps(histograms, thresholds)

    def values(weights: FloatArray) -> FloatArray:
        return ranking.ratio(weights @ twice_hit, weights @ sizes)

    pixels = pixels_of_tumour_slices(histograms)
    return Statistic("dice", "pixel", "tumour", pixels, values, "no tumour slices", rule)


def mean_dice(histograms: Sequence[PixelHistogram], thresholds: FloatArray) -> Statistic:
    """Mean over patients with tumour of the Dice of their tumour slices: small tumours count as much as large ones."""
    twice_hit, sizes = _overlaps(histograms, thresholds)
    has_tumour = np.array([histogram.classes()[0].any() for histogram in histograms], float)
    dice = np.where(has_tumour > 0, twice_hit / np.maximum(sizes, 1), 0.0)

    def values(weights: FloatArray) -> FloatArray:
        return ranking.ratio(weights @ dice, weights @ has_tumour)

    return Statistic("dice", "patient", "tumour", int(has_tumour.sum()), values, "no patients with tumour slices")


def pixels_of_tumour_slices(histograms: Sequence[PixelHistogram]) -> int:
    """How many pixels Dice is taken over."""
    return sum(histogram.tumour_slice_pixels for histogram in histograms)


def _overlaps(histograms: Sequence[PixelHistogram], thresholds: FloatArray) -> tuple[FloatArray, FloatArray]:
    """2·TP and 2·TP + FP + FN of each patient, float64 (P,) each."""
    pairs = zip(histograms, thresholds, strict=True)
    overlaps = np.array([histogram.overlap(threshold) for histogram, threshold in pairs], float).reshape(-1, 2)
    return overlaps[:, 0], overlaps[:, 1]


def _in_batches(values: Values) -> Values:
    def batched(weights: FloatArray) -> FloatArray:
        return np.concatenate([values(part) for part in np.array_split(weights, 1 + len(weights) // _BATCH)])

    return batched

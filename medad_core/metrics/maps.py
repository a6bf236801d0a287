"""What anomaly maps are worth: pixel curves, AUPRO and Dice from one histogram a patient.

One decision: histograms add, so a patient that is drawn twice counts its pixels twice, and no pixel is looked at again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medad_core.metrics import ranking
from medad_core.metrics.arrays import BoolArray, FloatArray, IntArray
from medad_core.metrics.pixel import FPR_LIMIT, PixelHistogram
from medad_core.metrics.ranking import Values
from medad_core.metrics.statistic import Statistic

# Replicates go through in batches: a thousand of them at once would hold gigabytes for a large cohort.
_BATCH = 64


@dataclass(frozen=True)
class PixelCounts:
    """Pixels and regions of each patient at L levels; the metrics map patient weights (B, P) to values (B,) in [0, 1].

    tumour, other: pixels, float64 (P, L). region_share: (P, L), see `PixelHistogram`. regions: (P,). tied: (L,) bool,
    levels whose pixels all have one value.
    """

    tumour: FloatArray
    other: FloatArray
    region_share: FloatArray
    regions: FloatArray
    tied: BoolArray

    @classmethod
    def of(cls, histograms: Sequence[PixelHistogram]) -> PixelCounts:
        """Of one histogram a patient, at least one."""
        classes = np.array([histogram.classes() for histogram in histograms], float)
        return cls(
            tumour=classes[:, 0],
            other=classes[:, 1],
            region_share=np.array([histogram.region_share for histogram in histograms]),
            regions=np.array([histogram.regions for histogram in histograms], float),
            tied=histograms[0].tied,
        )

    def auroc(self, weights: FloatArray) -> FloatArray:
        """Area under the ROC curve over pixels."""
        return ranking.auroc(weights @ self.tumour, weights @ self.other)

    def average_precision(self, weights: FloatArray) -> FloatArray:
        """Average precision over pixels."""
        return ranking.average_precision_of_levels(weights @ self.tumour, weights @ self.other, self.tied)

    def aupro(self, weights: FloatArray) -> FloatArray:
        """Area under the per-region overlap curve, see `ranking.aupro`."""
        return ranking.aupro(weights @ self.region_share, weights @ self.regions, weights @ self.other, FPR_LIMIT)

    def pairs(self, weights: FloatArray) -> FloatArray:
        """How many pairs of a tumour pixel and another there are."""
        return np.asarray((weights @ self.tumour.sum(axis=1)) * (weights @ self.other.sum(axis=1)))

    def count_regions(self, weights: FloatArray) -> FloatArray:
        """How many regions there are."""
        return np.asarray(weights @ self.regions)


def pixel_statistics(histograms: Sequence[PixelHistogram], fold: IntArray | None = None) -> list[Statistic]:
    """AUROC, average precision and AUPRO over pixels, in this order, from one histogram a patient; at least one.

    `fold` (P,): patients whose maps are of one model, within which the curves are taken (`ranking.within_strata`);
    None: all are of one.
    """
    counts = PixelCounts.of(histograms)
    strata = np.zeros(len(histograms), int) if fold is None else fold
    pixels = sum(histogram.pixels for histogram in histograms)

    def statistic(metric: str, values: Values, sizes: Values) -> Statistic:
        within = _in_batches(ranking.within_strata(values, sizes, strata))
        return Statistic(metric, "pixel", "all", pixels, within, "no labelled pixels of both classes")

    return [
        statistic("auroc", counts.auroc, counts.pairs),
        statistic("ap", counts.average_precision, counts.pairs),
        statistic("aupro", counts.aupro, counts.count_regions),
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

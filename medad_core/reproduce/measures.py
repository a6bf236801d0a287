"""What is measured of one row of the comparison: a score, decisions by several rules, and maps.

One decision: what cannot be known makes NaN with its reason, and never drops out in silence. One score that is no
number takes every cell that would rest on it; a slice without a decision takes the cells of that rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from medad_core.metrics import PixelHistogram
from medad_core.metrics.arrays import FloatArray, IntArray
from medad_core.metrics.decisions import Decision, decision_statistics, sensitivity_by_size
from medad_core.metrics.maps import pixel_statistics, pixels_of_tumour_slices, pooled_dice
from medad_core.metrics.patients import highest_scores, mean_scores, patient_units, vote
from medad_core.metrics.scores import calibration_error, score_statistics
from medad_core.metrics.statistic import COMPARISON, Statistic, never
from medad_core.metrics.units import Units


@dataclass(frozen=True)
class RowUnits:
    """N slices of P patients.

    patient, fold, label: see `metrics.units.Units`. score: (N,) float, a `probability` or not. decisions: of slices
    (N,), one a rule. area_mm2: (N,) of the lesion. patient_decisions_mean: of patients (P,), taken on a patient's
    mean score. k: slices that make a patient positive by the rule k of n. histograms: one a patient, None where the
    row has no maps. pixel_thresholds: (P,) or None; `pixel_reason` says why not.
    """

    patient: IntArray
    fold: IntArray
    label: FloatArray
    score: FloatArray
    probability: bool
    decisions: tuple[Decision, ...]
    area_mm2: FloatArray
    patient_decisions_mean: tuple[Decision, ...]
    k: int
    histograms: Sequence[PixelHistogram] | None
    pixel_thresholds: FloatArray | None
    pixel_reason: str | None

    @property
    def slices(self) -> Units:
        """The slices as units of the metrics."""
        return Units("image", self.patient, self.fold, self.label)

    @property
    def patients(self) -> int:
        """P, how many patients there are."""
        return len(self.fold)


def row_statistics(row: RowUnits, lesion_area_mm2: Sequence[float]) -> list[Statistic]:
    """Image, pixel and patient statistics of a row; `lesion_area_mm2` are the edges between bins of lesion size."""
    slices = row.slices
    why_unscored = slices.why_unscored(row.score)
    decisions = [decision.explained(why_unscored) for decision in row.decisions]
    statistics = score_statistics(slices, row.score, COMPARISON)
    statistics.append(calibration_error(slices, row.score, row.probability))
    for decision in decisions:
        statistics += decision_statistics(slices, decision, COMPARISON)
    for decision in decisions:
        statistics += sensitivity_by_size(slices, decision, row.area_mm2, lesion_area_mm2)
    statistics += _pixels(row)
    statistics += _patients(row)
    return statistics


def _pixels(row: RowUnits) -> list[Statistic]:
    if not row.histograms:
        reason = row.pixel_reason or "no maps"
        curves = [Statistic(metric, "pixel", "all", 0, never, reason) for metric in ("auroc", "ap", "aupro")]
        dice = [Statistic("dice", "pixel", "tumour", 0, never, reason, rule) for rule in ("validation", "0.5")]
        return curves + dice
    at_half = pooled_dice(row.histograms, np.full(row.patients, 0.5), "0.5")
    return [*pixel_statistics(row.histograms, row.fold), _dice(row, row.histograms), at_half]


def _dice(row: RowUnits, histograms: Sequence[PixelHistogram]) -> Statistic:
    """Pooled Dice, each patient at the threshold of its own fold."""
    if row.pixel_thresholds is not None:
        return pooled_dice(histograms, row.pixel_thresholds, "validation")
    pixels = pixels_of_tumour_slices(histograms)
    return Statistic("dice", "pixel", "tumour", pixels, never, row.pixel_reason or "no threshold", "validation")


def _patients(row: RowUnits) -> Iterator[Statistic]:
    """A patient is positive where any slice is, by the highest, the k-th highest or the mean score."""
    slices = row.slices
    patients = patient_units(slices)
    for how, least in (("any", 1), ("k_of_n", row.k)):
        score = highest_scores(slices, row.score, least, COMPARISON)
        decisions = tuple(vote(slices, decision, least) for decision in row.decisions)
        yield from _patients_by(row, how, patients, score, decisions, _too_few(slices, patients, least))
    mean = mean_scores(slices, row.score)
    yield from _patients_by(row, "mean", patients, mean, row.patient_decisions_mean, None)


def _patients_by(
    row: RowUnits,
    how: str,
    patients: Units,
    score: FloatArray,
    decisions: Sequence[Decision],
    too_few: str | None,
) -> Iterator[Statistic]:
    yield from score_statistics(patients, score, COMPARISON, how, too_few)
    yield calibration_error(patients, score, row.probability, how, too_few)
    why_unscored = patients.why_unscored(score, too_few)
    for decision in decisions:
        rule = f"{how}/{decision.rule}"
        yield from decision_statistics(patients, decision.explained(why_unscored), COMPARISON, rule)


def _too_few(slices: Units, patients: Units, least: int) -> str | None:
    """Why labelled patients have no k-th highest score."""
    sizes = np.bincount(slices.patient, minlength=slices.patients)
    few = int((patients.labelled & (sizes < least)).sum())
    return f"{few} patients have fewer than {least} slices" if few else None

"""What a score is worth: its ranking of units with tumour above those without, and its calibration.

One decision: curves rank within folds only (`ranking.within_strata`), because scores of two folds are scores of two
models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medad_core.metrics import ranking
from medad_core.metrics.arrays import FloatArray
from medad_core.metrics.ranking import Curve, Values
from medad_core.metrics.statistic import Policy, Statistic, never
from medad_core.metrics.units import Units

ECE_BINS = 15


POINT = 0.95
CURVES = (("auroc", ranking.auroc), ("ap", ranking.average_precision))
# Where somebody would work who may miss, or alarm, one in twenty.
OPERATING_POINTS = (
    ("sensitivity_at_specificity_95", ranking.sensitivity_at(POINT)),
    ("specificity_at_sensitivity_95", ranking.specificity_at(POINT)),
)


def score_statistics(
    units: Units,
    score: FloatArray,
    policy: Policy,
    rule: str = "",
    too_few: str | None = None,
    curves: Sequence[tuple[str, Curve]] = CURVES,
) -> list[Statistic]:
    """`curves` of a score (N,), NaN where absent, by name; `too_few` says why it is, where that is known."""
    usable = units.labelled & ~np.isnan(score) if policy.leave_out else units.labelled
    why = None if policy.leave_out else units.why_unscored(score, too_few)
    with_tumour = units.count(usable & units.positive)
    tumour_free = units.count(usable & units.negative)

    def ranked(curve: Curve) -> Values:
        labels = units.positive[usable]
        patients = units.patient[usable]
        return ranking.within_strata(
            lambda weights: ranking.weighted_curve(curve, score[usable], labels, patients, weights),
            lambda weights: (weights @ with_tumour) * (weights @ tumour_free),
            units.fold,
        )

    undefined = why or units.why_undefined(usable, "scores")
    return [
        Statistic(metric, units.level, "all", int(usable.sum()), never if why else ranked(curve), undefined, rule)
        for metric, curve in curves
    ]


def calibration_error(
    units: Units, score: FloatArray, probability: bool, rule: str = "", too_few: str | None = None
) -> Statistic:
    """Expected calibration error of a score (N,) that claims to be a `probability` (Naeini et al. 2015).

    It is the mean gap between score and share of tumour over 15 bins of equal width, each weighing as many units as
    it has.
    """
    labelled = units.labelled
    why = units.why_unscored(score, too_few) or _no_probability(score[labelled], probability)
    count = int(labelled.sum())
    if why:
        return Statistic("ece", units.level, "all", count, never, why, rule)
    bins = np.minimum((score[labelled] * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = np.bincount(
        bins + ECE_BINS * units.patient[labelled],
        weights=score[labelled] - units.label[labelled],
        minlength=ECE_BINS * units.patients,
    ).reshape(-1, ECE_BINS)
    sizes = units.count(labelled)

    def values(weights: FloatArray) -> FloatArray:
        return ranking.ratio(np.abs(weights @ gaps).sum(axis=1), weights @ sizes)

    return Statistic("ece", units.level, "all", count, values, f"no {units.noun}", rule)


def _no_probability(score: FloatArray, probability: bool) -> str | None:
    if not probability:
        return "the score is no probability"
    return "scores outside [0, 1]" if ((score < 0) | (score > 1)).any() else None

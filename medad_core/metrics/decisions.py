"""What decisions are worth: sensitivity, specificity, accuracy, balanced accuracy and F1, each defined once.

One decision: a decision is yes, no or undecided, and whoever decided says what undecided means. An answer that could
not be read is wrong; a slice without a threshold is unknown, and takes every number that would rest on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from medad_core.metrics.arrays import BoolArray, FloatArray
from medad_core.metrics.ranking import Values, ratio
from medad_core.metrics.statistic import Policy, Statistic, never
from medad_core.metrics.units import Units


@dataclass(frozen=True)
class Decision:
    """What a `rule` decided of N units.

    verdict: (N,) float, 1 yes, 0 no, NaN undecided, for the `reason` given or, with `undecided_is_wrong`, wrongly.
    asked: (N,) bool, the units that had to be decided, None for all; the others do not count.
    """

    rule: str
    verdict: FloatArray
    reason: str | None = None
    undecided_is_wrong: bool = False
    asked: BoolArray | None = None

    def settled(self, label: FloatArray) -> FloatArray:
        """The verdicts (N,), the opposite of `label` (N,) where undecided is wrong."""
        return np.where(np.isnan(self.verdict) & self.undecided_is_wrong, 1 - label, self.verdict)

    def explained(self, reason: str | None) -> Decision:
        """The same decision with a reason for what is undecided, where it has none of its own."""
        return replace(self, reason=self.reason or reason)

    def why_undecided(self, units: Units, among: BoolArray) -> str | None:
        """Why some units `among` (N,) are undecided; None where none is."""
        undecided = int(np.isnan(self.settled(units.label)[among]).sum())
        return (self.reason or f"{undecided} {units.noun} undecided") if undecided else None


@dataclass(frozen=True)
class Confusion:
    """True and false, positives and negatives: how many each patient has, float64 (P,) each.

    The metrics map patient weights (B, P) to values (B,) in [0, 1].
    """

    tp: FloatArray
    fn: FloatArray
    tn: FloatArray
    fp: FloatArray

    @classmethod
    def of(cls, units: Units, verdict: FloatArray, judged: BoolArray) -> Confusion:
        """Of verdicts (N,) of the units `judged` (N,)."""
        positive = judged & units.positive
        negative = judged & units.negative
        return cls(
            tp=units.count(positive & (verdict == 1)),
            fn=units.count(positive & (verdict == 0)),
            tn=units.count(negative & (verdict == 0)),
            fp=units.count(negative & (verdict == 1)),
        )

    def sensitivity(self, weights: FloatArray) -> FloatArray:
        """Share of the units with tumour that are called so."""
        return ratio(weights @ self.tp, weights @ (self.tp + self.fn))

    def specificity(self, weights: FloatArray) -> FloatArray:
        """Share of the tumour-free units that are called so."""
        return ratio(weights @ self.tn, weights @ (self.tn + self.fp))

    def accuracy(self, weights: FloatArray) -> FloatArray:
        """Share of the units that are called what they are."""
        return ratio(weights @ (self.tp + self.tn), weights @ (self.tp + self.fn + self.tn + self.fp))

    def balanced_accuracy(self, weights: FloatArray) -> FloatArray:
        """Mean of sensitivity and specificity."""
        return (self.sensitivity(weights) + self.specificity(weights)) / 2

    def f1(self, weights: FloatArray) -> FloatArray:
        """Harmonic mean of precision and sensitivity; undefined without units with tumour."""
        score = ratio(2 * (weights @ self.tp), weights @ (2 * self.tp + self.fp + self.fn))
        return np.where(weights @ (self.tp + self.fn) > 0, score, np.nan)

    def majority_accuracy(self, weights: FloatArray) -> FloatArray:
        """Accuracy of always giving the commoner answer."""
        positive = self.tp + self.fn
        negative = self.tn + self.fp
        return ratio(np.maximum(weights @ positive, weights @ negative), weights @ (positive + negative))


def decision_statistics(units: Units, decision: Decision, policy: Policy, rule: str | None = None) -> list[Statistic]:
    """Accuracy, balanced accuracy, sensitivity, specificity and F1, in this order.

    They go by the name `rule`, or by that of the decision's own rule.
    """
    judged = _judged(units, decision)
    why = decision.why_undecided(units, judged)
    undefined = why or units.why_undefined(judged, "answers")
    confusion = Confusion.of(units, decision.settled(units.label), judged)
    positive = judged & units.positive
    negative = judged & units.negative
    one_class = not (positive.any() and negative.any())
    unknown = why is not None or (one_class and not policy.one_class)

    def statistic(metric: str, subset: str, among: BoolArray, values: Values) -> Statistic:
        return Statistic(
            metric, units.level, subset, int(among.sum()), values, undefined, decision.rule if rule is None else rule
        )

    return [
        statistic("accuracy", "all", judged, never if unknown else confusion.accuracy),
        statistic("balanced_accuracy", "all", judged, never if unknown else confusion.balanced_accuracy),
        statistic("sensitivity", "tumour", positive, never if why else confusion.sensitivity),
        statistic("specificity", "tumour_free", negative, never if why else confusion.specificity),
        statistic("f1", "all", judged, never if unknown else confusion.f1),
    ]


def majority_class_accuracy(units: Units, decision: Decision) -> Statistic:
    """Accuracy of always giving the commoner answer, over the units that `decision` is judged by."""
    judged = _judged(units, decision)
    confusion = Confusion.of(units, units.label, judged)
    undefined = units.why_undefined(judged, "answers")
    return Statistic(
        "majority_class_accuracy", units.level, "all", int(judged.sum()), confusion.majority_accuracy, undefined
    )


def sensitivity_by_size(
    units: Units, decision: Decision, area_mm2: FloatArray, edges_mm2: Sequence[float]
) -> list[Statistic]:
    """Sensitivity among slices whose tumour covers an area (N,) within each bin.

    `edges_mm2` part the bins, in rising order; a lesion on an edge belongs to the bin above.
    """
    verdict = decision.settled(units.label)
    unmeasured = int(np.isnan(area_mm2[units.positive]).sum())
    statistics = []
    for low, high in pairwise((0.0, *edges_mm2, np.inf)):
        within = units.positive & (area_mm2 >= low) & (area_mm2 < high)
        # A lesion of unknown size may belong to any of the bins.
        why = f"{unmeasured} slices with tumour have no area" if unmeasured else decision.why_undecided(units, within)
        subset = f"area from {low:g} mm²" if np.isinf(high) else f"area {low:g} to {high:g} mm²"
        values = never if why else Confusion.of(units, verdict, within).sensitivity
        undefined = why or "no lesions of this size"
        statistics.append(
            Statistic("sensitivity", units.level, subset, int(within.sum()), values, undefined, decision.rule)
        )
    return statistics


def _judged(units: Units, decision: Decision) -> BoolArray:
    return units.labelled if decision.asked is None else units.labelled & decision.asked

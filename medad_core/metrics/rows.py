"""Everything measured of one row of a comparison: a score, decisions by several rules, and maps.

One decision: what cannot be known makes NaN with its reason, and never drops out in silence. One score that is no number takes
every cell that would rest on it; a slice without a decision takes the cells of that rule. Scores of two folds are scores of two
models, on two scales: curves rank within folds only (`ranking.within_strata`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from medad_core.metrics import ranking
from medad_core.metrics.pixel import PixelHistogram
from medad_core.metrics.statistics import Values, pixel_statistics

ECE_BINS = 15


class Decision(NamedTuple):
    """Yes 1, no 0 or undecided NaN by a rule, for slices (N,) or patients (P,); why some are undecided, or that undecided is wrong."""

    rule: str
    said: np.ndarray
    reason: str | None = None
    undecided_is_wrong: bool = False

    def settled(self, label: np.ndarray) -> np.ndarray:
        """What was said of each unit, the opposite of `label` where undecided is wrong."""
        return np.where(np.isnan(self.said) & self.undecided_is_wrong, 1 - label, self.said)


@dataclass(frozen=True)
class RowUnits:
    """N slices of P patients.

    patient (N,) int column of the bootstrap weights; fold (P,) int that tests each patient. label (N,) float 0/1, NaN where unlabelled. score (N,) float, a `probability` or
    not. decisions: rules with (N,) values. area_mm2 (N,) of the lesion. patient_decisions_mean: rules with (P,) values, taken on a
    patient's mean score. k: slices that make a patient positive by the rule k of n. histograms: one a patient, None where the
    row has no maps; pixel_thresholds (P,) or None; `pixel_reason` why not.
    """

    patient: np.ndarray
    fold: np.ndarray
    label: np.ndarray
    score: np.ndarray
    probability: bool
    decisions: tuple[Decision, ...]
    area_mm2: np.ndarray
    patient_decisions_mean: tuple[Decision, ...]
    k: int
    histograms: Sequence[PixelHistogram] | None
    pixel_thresholds: np.ndarray | None
    pixel_reason: str | None

    @property
    def patients(self) -> int:
        return len(self.fold)


@dataclass(frozen=True)
class RuledStatistic:
    """A metric as a function of how often each patient counts: weights (B, P) to values (B,); NaN where undefined, for the reason given."""

    metric: str
    level: str
    rule: str
    subset: str
    n: int
    values: Values
    undefined: str


@dataclass(frozen=True)
class _Judged:
    """Units (slices or patients) of one level: label and score (N,), patient (N,) of each; `absent` says why scores are missing."""

    level: str
    patient: np.ndarray
    fold: np.ndarray
    label: np.ndarray
    score: np.ndarray
    absent: str | None = None

    @property
    def name(self) -> str:
        return "patients" if self.level == "patient" else "slices"

    def why_not(self) -> str | None:
        """Why nothing can be measured of these scores."""
        known = ~np.isnan(self.label)
        if not known.any():
            return f"no labelled {self.name}"
        bad = int(np.isnan(self.score[known]).sum())
        return (self.absent or f"{bad} scores are not numbers") if bad else None

    def why_undecided(self, said: np.ndarray, among: np.ndarray, reason: str | None) -> str | None:
        """Why nothing can be said of decisions (N,) `among` which some are NaN; None where all are made."""
        undecided = int(np.isnan(said[among]).sum())
        return (reason or self.why_not() or f"{undecided} {self.name} undecided") if undecided else None

    def one_class(self) -> str:
        for flag, kind in ((1, f"{self.name} with tumour"), (0, f"tumour-free {self.name}")):
            if not (self.label == flag).any():
                return f"one class only: no {kind}"
        return f"one class only in every fold of these {self.name}"

    def count(self, flags: np.ndarray) -> np.ndarray:
        """Flags (N,) to how many each patient has (P,)."""
        return np.bincount(self.patient, weights=flags, minlength=len(self.fold))


def row_statistics(row: RowUnits, lesion_area_mm2: Sequence[float]) -> list[RuledStatistic]:
    """Image, pixel and patient statistics of a row; `lesion_area_mm2` are the edges between bins of lesion size."""
    slices = _Judged("image", row.patient, row.fold, row.label, row.score)
    return [
        *_curves(slices, ""),
        _calibration(slices, "", row.probability),
        *(found for decision in row.decisions for found in _decided(slices, decision)),
        *(found for decision in row.decisions for found in _by_size(slices, decision, row.area_mm2, lesion_area_mm2)),
        *_pixels(row),
        *_patients(row),
    ]


def _curves(units: _Judged, rule: str) -> Iterator[RuledStatistic]:
    known, why = ~np.isnan(units.label), units.why_not()
    labels, groups, scores = units.label[known] == 1, units.patient[known], units.score[known]
    sick, free = units.count(units.label == 1), units.count(units.label == 0)
    for name, curve in (("auroc", ranking.auroc), ("ap", ranking.average_precision)):
        ranked = ranking.within_strata(
            lambda w, curve=curve: ranking.weighted_curve(curve, scores, labels, groups, w),
            lambda w: (w @ sick) * (w @ free),
            units.fold,
        )
        values = _never if why else ranked
        yield RuledStatistic(name, units.level, rule, "all", int(known.sum()), values, why or units.one_class())


def _calibration(units: _Judged, rule: str, probability: bool) -> RuledStatistic:
    """Expected calibration error: mean gap between score and share of tumour over 15 bins of equal width, weighted by their size."""
    known = ~np.isnan(units.label)
    why = units.why_not() or (None if probability else "the score is no probability")
    if not why and ((units.score[known] < 0) | (units.score[known] > 1)).any():
        why = "scores outside [0, 1]"
    if why:
        return RuledStatistic("ece", units.level, rule, "all", int(known.sum()), _never, why)
    cells = np.minimum((units.score[known] * ECE_BINS).astype(int), ECE_BINS - 1) + ECE_BINS * units.patient[known]
    gaps = np.bincount(
        cells, weights=units.score[known] - units.label[known], minlength=ECE_BINS * len(units.fold)
    ).reshape(-1, ECE_BINS)
    sizes = units.count(known)
    return RuledStatistic(
        "ece",
        units.level,
        rule,
        "all",
        int(known.sum()),
        lambda w: ranking.ratio(np.abs(w @ gaps).sum(axis=1), w @ sizes),
        "no slices",
    )


def _decided(units: _Judged, decision: Decision, rule: str | None = None) -> Iterator[RuledStatistic]:
    said, known = decision.settled(units.label), ~np.isnan(units.label)
    why = units.why_undecided(said, known, decision.reason) if known.any() else units.why_not()
    positive, negative = units.label == 1, units.label == 0
    tp, fn, tn, fp = (
        units.count(a & (said == b)) for a, b in ((positive, 1), (positive, 0), (negative, 0), (negative, 1))
    )

    def sensitivity(w: np.ndarray) -> np.ndarray:
        return ranking.ratio(w @ tp, w @ (tp + fn))

    def specificity(w: np.ndarray) -> np.ndarray:
        return ranking.ratio(w @ tn, w @ (tn + fp))

    rows = (
        ("accuracy", "all", known, lambda w: ranking.ratio(w @ (tp + tn), w @ (tp + fn + tn + fp))),
        ("balanced_accuracy", "all", known, lambda w: (sensitivity(w) + specificity(w)) / 2),
        ("sensitivity", "tumour", positive, sensitivity),
        ("specificity", "tumour_free", negative, specificity),
        (
            "f1",
            "all",
            known,
            lambda w: np.where(w @ (tp + fn) > 0, ranking.ratio(2 * (w @ tp), w @ (2 * tp + fp + fn)), np.nan),
        ),
    )
    single = not (positive.any() and negative.any())
    for metric, subset, among, values in rows:
        # Of one class alone, accuracy is the sensitivity or the specificity under a name that promises more.
        unknown = why or (subset == "all" and single)
        yield RuledStatistic(
            metric,
            units.level,
            rule or decision.rule,
            subset,
            int(among.sum()),
            _never if unknown else values,
            why or units.one_class(),
        )


def _by_size(
    units: _Judged, decision: Decision, area_mm2: np.ndarray, edges: Sequence[float]
) -> Iterator[RuledStatistic]:
    """Sensitivity among slices whose tumour covers an area within each bin."""
    said = decision.settled(units.label)
    unmeasured = int(np.isnan(area_mm2[units.label == 1]).sum())
    for low, high in pairwise((0.0, *edges, np.inf)):
        within = (units.label == 1) & (area_mm2 >= low) & (area_mm2 < high)
        hit, size = units.count(within & (said == 1)), units.count(within)
        # A lesion of unknown size may belong to any of the bins.
        why = (
            f"{unmeasured} slices with tumour have no area"
            if unmeasured
            else units.why_undecided(said, within, decision.reason)
        )
        subset = f"area from {low:g} mm²" if np.isinf(high) else f"area {low:g} to {high:g} mm²"
        values = _never if why else lambda w, hit=hit, size=size: ranking.ratio(w @ hit, w @ size)
        yield RuledStatistic(
            "sensitivity",
            units.level,
            decision.rule,
            subset,
            int(within.sum()),
            values,
            why or "no lesions of this size",
        )


def _pixels(row: RowUnits) -> Iterator[RuledStatistic]:
    if not row.histograms:
        for metric, rule, subset in (
            ("auroc", "", "all"),
            ("ap", "", "all"),
            ("aupro", "", "all"),
            ("dice", "validation", "tumour"),
            ("dice", "0.5", "tumour"),
        ):
            yield RuledStatistic(metric, "pixel", rule, subset, 0, _never, row.pixel_reason or "no maps")
        return
    *curves, at_half = pixel_statistics(row.histograms, 0.5, row.fold)
    for found in curves:
        yield RuledStatistic(
            found.metric.removeprefix("map_"), "pixel", "", "all", found.n, found.values, found.undefined
        )
    yield _dice(row, at_half.n)
    yield RuledStatistic("dice", "pixel", "0.5", "tumour", at_half.n, at_half.values, at_half.undefined)


def _dice(row: RowUnits, pixels: int) -> RuledStatistic:
    """Pooled Dice, each patient at the threshold of its own fold."""
    if row.pixel_thresholds is None:
        return RuledStatistic(
            "dice", "pixel", "validation", "tumour", pixels, _never, row.pixel_reason or "no threshold"
        )
    overlaps = [
        h.overlap(limit) if h.regions else (0, 0) for h, limit in zip(row.histograms, row.pixel_thresholds, strict=True)
    ]
    twice_hit, sizes = np.array(overlaps, float).T
    return RuledStatistic(
        "dice",
        "pixel",
        "validation",
        "tumour",
        pixels,
        lambda w: ranking.ratio(w @ twice_hit, w @ sizes),
        "no tumour slices",
    )


def _patients(row: RowUnits) -> Iterator[RuledStatistic]:
    """A patient is positive where any slice is, by the highest, the k-th highest or the mean score."""
    slices = [np.flatnonzero(row.patient == patient) for patient in range(row.patients)]
    label = np.array([_highest(row.label[own]) for own in slices])
    for name, least in (("any", 1), ("k_of_n", row.k), ("mean", 1)):
        score = np.array([_score(row.score[own], None if name == "mean" else least) for own in slices])
        few = sum(len(own) < least and not np.isnan(known) for own, known in zip(slices, label, strict=True))
        absent = f"{few} patients have fewer than {least} slices" if few else None
        units = _Judged("patient", np.arange(row.patients), row.fold, label, score, absent)
        yield from _curves(units, name)
        yield _calibration(units, name, row.probability)
        decisions = (
            row.patient_decisions_mean
            if name == "mean"
            else [_voted(decision, slices, least) for decision in row.decisions]
        )
        for decision in decisions:
            yield from _decided(units, decision, f"{name}/{decision.rule}")


def _score(scores: np.ndarray, k: int | None) -> float:
    """The k-th highest of a patient's scores, or their mean; NaN where one is NaN, which sorting would pass over, or k are not there."""
    if len(scores) < (k or 1) or np.isnan(scores).any():
        return np.nan
    return float(np.sort(scores)[-k] if k else np.mean(scores))


def _voted(decision: Decision, slices: Sequence[np.ndarray], least: int) -> Decision:
    """Yes where at least `least` slices are; undecided where undecided or missing slices could still change that."""
    yes = np.array([(decision.said[own] == 1).sum() for own in slices])
    open_ = np.array([np.isnan(decision.said[own]).sum() for own in slices])
    enough = np.array([len(own) >= least for own in slices])
    return decision._replace(said=np.where(yes >= least, 1.0, np.where(enough & (yes + open_ < least), 0.0, np.nan)))


def _highest(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.max()) if len(known) else np.nan


def _never(weights: np.ndarray) -> np.ndarray:
    return np.full(len(weights), np.nan)

"""Everything measured of one row of a comparison: a score, decisions by several rules, and maps.

One decision: what cannot be known makes NaN with its reason, and never drops out in silence. One score that is no number takes
every cell that would rest on it; a slice without a decision takes the cells of that rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from medad_core.metrics import ranking
from medad_core.metrics.pixel import FPR_LIMIT, PixelHistogram
from medad_core.metrics.statistics import Values

ECE_BINS = 15
Decision = tuple[str, np.ndarray, str | None]  # rule; 1 yes, 0 no, NaN undecided; why some are undecided


@dataclass(frozen=True)
class RowUnits:
    """N slices of P patients.

    patient (N,) int column of the bootstrap weights. label (N,) float 0/1, NaN where unlabelled. score (N,) float, a `probability` or
    not. decisions: rules with (N,) values. area_mm2 (N,) of the lesion. patient_decisions_mean: rules with (P,) values, taken on a
    patient's mean score. k: slices that make a patient positive by the rule k of n. histograms: one a patient, None where the
    row has no maps; pixel_thresholds (P,) or None; `pixel_reason` why not.
    """

    patient: np.ndarray
    patients: int
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
    """Units (slices or patients) of one level: label and score (N,), patient (N,) of each."""

    level: str
    patient: np.ndarray
    patients: int
    label: np.ndarray
    score: np.ndarray

    def why_not(self) -> str | None:
        """Why nothing can be measured of these scores."""
        known = ~np.isnan(self.label)
        name = "patients" if self.level == "patient" else "slices"
        if not known.any():
            return f"no labelled {name}"
        bad = int(np.isnan(self.score[known]).sum())
        return f"{bad} scores are not numbers" if bad else None

    def one_class(self) -> str:
        name = "patients" if self.level == "patient" else "slices"
        return f"one class only: no {name} with tumour" if not (self.label == 1).any() else f"one class only: no tumour-free {name}"

    def count(self, flags: np.ndarray) -> np.ndarray:
        """Flags (N,) to how many each patient has (P,)."""
        return np.bincount(self.patient, weights=flags, minlength=self.patients)


def row_statistics(row: RowUnits, lesion_area_mm2: Sequence[float]) -> list[RuledStatistic]:
    """Image, pixel and patient statistics of a row; `lesion_area_mm2` are the edges between bins of lesion size."""
    slices = _Judged("image", row.patient, row.patients, row.label, row.score)
    return [
        *_curves(slices, "", ("auroc", "ap")),
        _calibration(slices, row.probability),
        *(found for decision in row.decisions for found in _decided(slices, decision)),
        *(found for decision in row.decisions for found in _by_size(slices, decision, row.area_mm2, lesion_area_mm2)),
        *_pixels(row),
        *_patients(row),
    ]


def _curves(units: _Judged, rule: str, metrics: Sequence[str]) -> Iterator[RuledStatistic]:
    known, why = ~np.isnan(units.label), units.why_not()
    labels, groups, scores = units.label[known] == 1, units.patient[known], units.score[known]
    for name in metrics:
        curve = {"auroc": ranking.auroc, "ap": ranking.average_precision}[name]
        values = _never if why else lambda w, curve=curve: ranking.weighted_curve(curve, scores, labels, groups, w)
        yield RuledStatistic(name, units.level, rule, "all", int(known.sum()), values, why or units.one_class())


def _calibration(units: _Judged, probability: bool) -> RuledStatistic:
    """Expected calibration error: mean gap between score and share of tumour over 15 bins of equal width, weighted by their size."""
    known = ~np.isnan(units.label)
    why = units.why_not() or (None if probability else "the score is no probability")
    if not why and ((units.score[known] < 0) | (units.score[known] > 1)).any():
        why = "scores outside [0, 1]"
    if why:
        return RuledStatistic("ece", units.level, "", "all", int(known.sum()), _never, why)
    cells = np.minimum((units.score[known] * ECE_BINS).astype(int), ECE_BINS - 1) + ECE_BINS * units.patient[known]
    gaps = np.bincount(cells, weights=units.score[known] - units.label[known], minlength=ECE_BINS * units.patients).reshape(-1, ECE_BINS)
    sizes = units.count(known)
    return RuledStatistic("ece", units.level, "", "all", int(known.sum()), lambda w: _share(np.abs(w @ gaps).sum(axis=1), w @ sizes), "no slices")


def _decided(units: _Judged, decision: Decision, rule: str | None = None) -> Iterator[RuledStatistic]:
    name, said, reason = decision
    known = ~np.isnan(units.label)
    why = "no labelled units" if not known.any() else (reason or "undecided") if np.isnan(said[known]).any() else None
    positive, negative = units.label == 1, units.label == 0
    tp, fn, tn, fp = (units.count(a & (said == b)) for a, b in ((positive, 1), (positive, 0), (negative, 0), (negative, 1)))

    def sensitivity(w: np.ndarray) -> np.ndarray:
        return _share(w @ tp, w @ (tp + fn))

    def specificity(w: np.ndarray) -> np.ndarray:
        return _share(w @ tn, w @ (tn + fp))

    rows = (
        ("accuracy", "all", known, lambda w: _share(w @ (tp + tn), w @ (tp + fn + tn + fp))),
        ("balanced_accuracy", "all", known, lambda w: (sensitivity(w) + specificity(w)) / 2),
        ("sensitivity", "tumour", positive, sensitivity),
        ("specificity", "tumour_free", negative, specificity),
        ("f1", "all", known, lambda w: np.where(w @ (tp + fn) > 0, _share(2 * (w @ tp), w @ (2 * tp + fp + fn)), np.nan)),
    )
    single = not (positive.any() and negative.any())
    for metric, subset, among, values in rows:
        # Of one class alone, accuracy is the sensitivity or the specificity under a name that promises more.
        unknown = why or (subset == "all" and single)
        yield RuledStatistic(metric, units.level, rule or name, subset, int(among.sum()), _never if unknown else values, why or units.one_class())


def _by_size(units: _Judged, decision: Decision, area_mm2: np.ndarray, edges: Sequence[float]) -> Iterator[RuledStatistic]:
    """Sensitivity among slices whose tumour covers an area within each bin."""
    name, said, reason = decision
    for low, high in pairwise((0.0, *edges, np.inf)):
        within = (units.label == 1) & (area_mm2 >= low) & (area_mm2 < high)
        hit, size = units.count(within & (said == 1)), units.count(within)
        why = (reason or "undecided") if np.isnan(said[within]).any() else None
        subset = f"area from {low:g} mm²" if np.isinf(high) else f"area {low:g} to {high:g} mm²"
        values = _never if why else lambda w, hit=hit, size=size: _share(w @ hit, w @ size)
        yield RuledStatistic("sensitivity", units.level, name, subset, int(within.sum()), values, why or "no lesions of this size")


def _pixels(row: RowUnits) -> Iterator[RuledStatistic]:
    if not row.histograms:
        for metric, rule in (("auroc", ""), ("ap", ""), ("aupro", ""), ("dice", "validation"), ("dice", "0.5")):
            yield RuledStatistic(metric, "pixel", rule, "all", 0, _never, row.pixel_reason or "no maps")
        return
    tumour, other = (np.array(counts, float) for counts in zip(*(histogram.classes() for histogram in row.histograms), strict=True))
    found, regions = np.array([h.found for h in row.histograms]), np.array([h.regions for h in row.histograms], float)
    tied, pixels = row.histograms[0].tied, sum(h.pixels for h in row.histograms)
    why = "no pixels of both classes"
    yield RuledStatistic("auroc", "pixel", "", "all", pixels, _batched(lambda w: ranking.auroc(w @ tumour, w @ other)), why)
    yield RuledStatistic("ap", "pixel", "", "all", pixels, _batched(lambda w: ranking.average_precision_of_levels(w @ tumour, w @ other, tied)), why)
    yield RuledStatistic("aupro", "pixel", "", "all", pixels, _batched(lambda w: ranking.aupro(w @ found, w @ regions, w @ other, FPR_LIMIT)), why)
    in_tumour_slices = sum(h.tumour_slice_pixels for h in row.histograms)
    for rule, limits in (("validation", row.pixel_thresholds), ("0.5", np.full(row.patients, 0.5))):
        if limits is None:
            yield RuledStatistic("dice", "pixel", rule, "tumour", in_tumour_slices, _never, row.pixel_reason or "no threshold")
            continue
        overlap = np.array([h.overlap(limit) if h.classes()[0].any() else (0, 0) for h, limit in zip(row.histograms, limits, strict=True)], float)
        yield RuledStatistic("dice", "pixel", rule, "tumour", in_tumour_slices, lambda w, o=overlap: _share(w @ o[:, 0], w @ o[:, 1]), "no slices with tumour")


def _patients(row: RowUnits) -> Iterator[RuledStatistic]:
    """A patient is positive where any slice is, by the highest, the k-th highest or the mean score."""
    columns = [row.patient == patient for patient in range(row.patients)]
    label = np.array([_highest(row.label[own]) for own in columns])
    for name, of_scores in (("any", lambda s: np.max(s)), ("k_of_n", lambda s: np.sort(s)[-row.k] if len(s) >= row.k else np.nan), ("mean", np.mean)):
        score = np.array([of_scores(row.score[own]) for own in columns])
        units = _Judged("patient", np.arange(row.patients), row.patients, label, score)
        yield from _curves(units, name, ("auroc",))
        decisions = row.patient_decisions_mean if name == "mean" else [_voted(decision, columns, 1 if name == "any" else row.k) for decision in row.decisions]
        for decision in decisions:
            yield from (found for found in _decided(units, decision, f"{name}/{decision[0]}") if found.metric != "f1")


def _voted(decision: Decision, columns: Sequence[np.ndarray], least: int) -> Decision:
    """Yes where at least `least` slices are; undecided where undecided slices could still change that."""
    rule, said, reason = decision
    yes = np.array([(said[own] == 1).sum() for own in columns])
    open_ = np.array([np.isnan(said[own]).sum() for own in columns])
    return rule, np.where(yes >= least, 1.0, np.where(yes + open_ < least, 0.0, np.nan)), reason


def _highest(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.max()) if len(known) else np.nan


def _batched(values: Values) -> Values:
    """In batches: a thousand replicates of 4,096 levels at once would hold gigabytes for a large cohort."""
    return lambda w: np.concatenate([values(part) for part in np.array_split(w, 1 + len(w) // 64)])


def _never(weights: np.ndarray) -> np.ndarray:
    return np.full(len(weights), np.nan)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)



"""What is measured: each metric as a function of how often every patient counts.

One decision: a metric is a function from patient weights (B, P) to values (B,). Weights of one give the value itself, drawn
weights its bootstrap, and both come from the same lines. NaN says undefined and travels with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from medad_core.metrics import ranking
from medad_core.metrics.columns import Units
from medad_core.metrics.pixel import FPR_LIMIT, PixelHistogram

Values = ranking.Values


@dataclass(frozen=True)
class Statistic:
    """`n` counts the units of the level in `subset` that the metric is taken over; `undefined` says why it may be NaN."""

    metric: str
    level: str
    subset: str
    n: int
    values: Values
    undefined: str


def score_statistics(units: Units, level: str) -> list[Statistic]:
    """AUROC and AP of the map score, of p_yes and of brightness."""
    scores = {"map": units.map_score, "p_yes": units.p_yes, "brightness": units.brightness}
    curves = {"auroc": ranking.auroc, "ap": ranking.average_precision}
    return [
        _ranked(f"{name}_{kind}", level, units, score, curve)
        for name, score in scores.items()
        for kind, curve in curves.items()
        if name != "brightness" or not np.isnan(score).all()
    ]


def verdict_statistics(units: Units, level: str) -> list[Statistic]:
    """The verdict against the label. An unparsed answer counts as the wrong one, whatever the label."""
    judged = units.labelled & units.answered
    positive, negative = judged & units.positive, judged & units.negative
    of_patient = _counter(units)
    tp, fn = of_patient(positive & units.says_yes), of_patient(positive & ~units.says_yes)
    tn, fp = of_patient(negative & units.says_no), of_patient(negative & ~units.says_no)

    def sensitivity(w: np.ndarray) -> np.ndarray:
        return ranking.ratio(w @ tp, w @ (tp + fn))

    def specificity(w: np.ndarray) -> np.ndarray:
        return ranking.ratio(w @ tn, w @ (tn + fp))

    def f1(w: np.ndarray) -> np.ndarray:
        return np.where(w @ (tp + fn) > 0, ranking.ratio(2 * (w @ tp), w @ (2 * tp + fp + fn)), np.nan)

    def majority(w: np.ndarray) -> np.ndarray:
        return ranking.ratio(np.maximum(w @ (tp + fn), w @ (tn + fp)), w @ (tp + fn + tn + fp))

    why = _why_not(level, units, judged, "answers")
    everything, sick, healthy = int(judged.sum()), int(positive.sum()), int(negative.sum())
    rows: list[tuple[str, str, int, Values]] = [
        ("verdict_accuracy", "all", everything, lambda w: ranking.ratio(w @ (tp + tn), w @ (tp + fn + tn + fp))),
        ("verdict_balanced_accuracy", "all", everything, lambda w: (sensitivity(w) + specificity(w)) / 2),
        ("verdict_sensitivity", "tumour", sick, sensitivity),
        ("verdict_specificity", "tumour_free", healthy, specificity),
        ("verdict_f1", "all", everything, f1),
        ("majority_class_accuracy", "all", everything, majority),
    ]
    return [Statistic(name, level, subset, n, values, why) for name, subset, n, values in rows]


def text_statistics(slices: Units, map_threshold: float) -> list[Statistic]:
    """What the sentences are worth beside their verdict; the first three need no labels."""
    readable = slices.says_yes | slices.says_no
    comparable = readable & ~np.isnan(slices.map_score)
    agree = (slices.map_score >= map_threshold) == slices.says_yes
    found = slices.positive & slices.says_yes
    free = slices.negative & slices.answered
    rows = [
        ("unparsed_share", "all", ~readable, slices.answered, "no answers"),
        ("yes_share", "all", slices.says_yes, slices.answered, "no answers"),
        ("verdict_map_agreement", "parsed", agree, comparable, "no parsed answers with a map score"),
        ("location_exact", "true_positive", slices.location_steps == 0, found, "no true positives"),
        ("location_exact_or_neighbour", "true_positive", slices.location_steps <= 1, found, "no true positives"),
        (
            "hallucinated_location_share",
            "tumour_free",
            slices.has_location,
            free,
            "no tumour-free slices with an answer",
        ),
    ]
    return [_shared(slices, *row) for row in rows]


def pixel_statistics(
    histograms: Sequence[PixelHistogram], map_threshold: float, strata: np.ndarray | None = None
) -> list[Statistic]:
    """Pixel curves, AUPRO and pooled Dice, in this order, from one histogram a patient, in the order of the weights' columns; at least one.

    `strata` (P,): patients whose maps are of one model, within which the curves are taken (`ranking.within_strata`); None: all are.
    """
    strata = np.zeros(len(histograms), int) if strata is None else strata
    levels = histograms[0].levels
    classes = np.array([histogram.classes() for histogram in histograms], float).reshape(-1, 2, levels)
    positives, negatives = classes[:, 0], classes[:, 1]
    found, regions = np.array([h.found for h in histograms]), np.array([h.regions for h in histograms], float)
    twice_hit, sizes, sick = _overlaps(histograms, map_threshold)
    pixels = sum(histogram.pixels for histogram in histograms)
    in_tumour_slices = sum(histogram.tumour_slice_pixels for histogram in histograms)

    sick_pixels, other_pixels = positives.sum(axis=1), negatives.sum(axis=1)

    def curve(values: Values, pairs: Values = lambda w: (w @ sick_pixels) * (w @ other_pixels)) -> Values:
        within = ranking.within_strata(values, pairs, strata)
        # Replicates go through in batches: a thousand of them at once would hold gigabytes for a large cohort.
        return lambda w: np.concatenate([within(part) for part in np.array_split(w, 1 + len(w) // 64)])

    def precision(w: np.ndarray) -> np.ndarray:
        return ranking.average_precision_of_levels(w @ positives, w @ negatives, histograms[0].tied)

    why = "no labelled pixels of both classes"
    return [
        Statistic("map_auroc", "pixel", "all", pixels, curve(lambda w: ranking.auroc(w @ positives, w @ negatives)), why),
        Statistic("map_ap", "pixel", "all", pixels, curve(precision), why),
        Statistic("map_aupro", "pixel", "all", pixels, curve(lambda w: ranking.aupro(w @ found, w @ regions, w @ negatives, FPR_LIMIT), lambda w: w @ regions), why),
        Statistic(
            "map_dice", "pixel", "tumour", in_tumour_slices,
            lambda w: np.where(w @ sick > 0, ranking.ratio(w @ twice_hit, w @ sizes), np.nan), "no tumour slices",
        ),
    ]  # fmt: skip


def patient_dice(histograms: Sequence[PixelHistogram], map_threshold: float) -> Statistic:
    """Dice of each patient's tumour slices, then the mean over patients with tumour: small tumours count as much as large."""
    twice_hit, sizes, sick = _overlaps(histograms, map_threshold)
    each = np.where(sick > 0, twice_hit / np.maximum(sizes, 1), 0.0)
    why = "no patients with tumour slices"
    return Statistic("map_dice", "patient", "tumour", int(sick.sum()), lambda w: ranking.ratio(w @ each, w @ sick), why)


def _overlaps(histograms: Sequence[PixelHistogram], threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(2·TP, 2·TP + FP + FN, has tumour) of each patient, float (P,)."""
    overlaps = np.array([histogram.overlap(threshold) for histogram in histograms], float).reshape(-1, 2)
    return overlaps[:, 0], overlaps[:, 1], np.array([h.classes()[0].any() for h in histograms], float)


def _ranked(metric: str, level: str, units: Units, score: np.ndarray, curve: ranking.Curve) -> Statistic:
    usable = units.labelled & ~np.isnan(score)
    labels, groups, scores = units.positive[usable], units.patient[usable], score[usable]
    why = _why_not(level, units, usable, "scores")
    return Statistic(
        metric, level, "all", int(usable.sum()), lambda w: ranking.weighted_curve(curve, scores, labels, groups, w), why
    )


def _shared(units: Units, metric: str, subset: str, flag: np.ndarray, among: np.ndarray, why: str) -> Statistic:
    """Share of `flag` among the slices `among`."""
    of_patient = _counter(units)
    part, whole = of_patient(flag & among), of_patient(among)
    return Statistic(metric, "text", subset, int(among.sum()), lambda w: ranking.ratio(w @ part, w @ whole), why)


def _counter(units: Units) -> Callable[[np.ndarray], np.ndarray]:
    """Flags (N,) to how many of them each patient has, (P,)."""
    return lambda flags: np.bincount(units.patient, weights=flags, minlength=units.patients)


def _why_not(level: str, units: Units, usable: np.ndarray, what: str) -> str:
    """Why a metric that needs both classes has no value here."""
    unit = "patients" if level == "patient" else "slices"
    if not units.labelled.any():
        return f"no labelled {unit}"
    if not usable.any():
        return f"no {what} for labelled {unit}"
    if not (usable & units.positive).any():
        return f"one class only: no {unit} with tumour"
    return f"one class only: no tumour-free {unit}"

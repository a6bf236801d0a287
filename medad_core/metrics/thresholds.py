"""A score becomes a decision: thresholds chosen on validation data.

One decision: a decision is `score >= threshold`, candidates are the scores that were seen, and among equally good
ones the highest wins. Where validation data do not allow a choice there is no threshold, with the reason, and not a
guess.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medad_core.metrics.arrays import BoolArray, FloatArray
from medad_core.metrics.pixel import PixelHistogram


@dataclass(frozen=True)
class Threshold:
    """`rule`: max_recall, youden, f1 or dice. `value` is None with a `reason` where none could be chosen."""

    rule: str
    value: float | None
    reason: str | None = None


def choose_threshold(scores: FloatArray, labels: BoolArray, rule: str) -> Threshold:
    """Threshold of scores (N,) with labels (N,) bool.

    max_recall: the highest of those with the highest recall, which is the lowest score of a positive (the paper's
    rule). youden: greatest sensitivity + specificity. f1: greatest F1.
    """
    scores = np.asarray(scores, float)
    labels = np.asarray(labels, bool)
    reason = _why_not(scores, labels, rule)
    if reason:
        return Threshold(rule, None, reason)
    if rule == "max_recall":
        return Threshold(rule, float(scores[labels].min()))
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # where the last of equal scores stands
    hits = np.cumsum(labels[order])[ends]
    called = ends + 1
    positives = labels.sum()
    negatives = (~labels).sum()
    # Youden's in whole numbers, because rounding would part equally good thresholds.
    youden = hits * negatives - (called - hits) * positives
    gain = youden if rule == "youden" else 2 * hits / (called + positives)
    return Threshold(rule, float(scores[order][ends[np.argmax(gain)]]))


def choose_pixel_threshold(histogram: PixelHistogram) -> Threshold:
    """The level edge of greatest Dice, pooled over tumour slices."""
    dice = histogram.dice_of_levels
    if np.isnan(dice).any():
        return Threshold("dice", None, "no tumour in the validation slices")
    return Threshold("dice", float(histogram.edges[len(dice) - 1 - np.argmax(dice[::-1])]))


def _why_not(scores: FloatArray, labels: BoolArray, rule: str) -> str | None:
    if not len(scores):
        return "nothing to validate on"
    if np.isnan(scores).any():
        return f"{int(np.isnan(scores).sum())} validation scores are not numbers"
    if not labels.any():
        return "nothing with tumour to validate on"
    if rule != "max_recall" and labels.all():
        return "nothing tumour-free to validate on"
    return None

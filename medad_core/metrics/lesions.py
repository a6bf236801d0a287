"""What anomaly maps are worth lesion by lesion: how many they touch, and what they see where there is none.

One decision: a lesion is a connected part of a slice's mask, corners included, of any size. So one of a single pixel
counts as much as one of a hundred, which pixel metrics and the score of a slice do not show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from scipy import ndimage

from medad_core.metrics.arrays import BoolArray, FloatArray
from medad_core.metrics.ranking import ratio
from medad_core.metrics.statistic import Statistic

_WITH_CORNERS = np.ones((3, 3), bool)


@dataclass(frozen=True)
class LesionCounts:
    """Lesions of labelled slices, those that a map touches; tumour-free slices, and the parts of maps in them."""

    lesions: int = 0
    touched: int = 0
    free_slices: int = 0
    false: int = 0

    def __add__(self, other: LesionCounts) -> LesionCounts:
        """The counts of both."""
        return LesionCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def count_lesions(seen: BoolArray, mask: BoolArray) -> LesionCounts:
    """The counts of one slice: `seen` (H, W) is the map above its threshold, `mask` (H, W) the truth."""
    if not mask.any():
        return LesionCounts(free_slices=1, false=ndimage.label(seen, _WITH_CORNERS)[1])
    parts, lesions = ndimage.label(mask, _WITH_CORNERS)
    return LesionCounts(lesions=lesions, touched=len(np.unique(parts[seen & mask])))


def lesion_statistics(counts: Sequence[LesionCounts]) -> list[Statistic]:
    """Share of the lesions that maps touch, and false lesions in a tumour-free slice, from the counts of P patients."""
    lesions, touched, free, false = np.array([astuple(one) for one in counts], float).reshape(-1, 4).T

    def statistic(metric: str, subset: str, part: FloatArray, whole: FloatArray, undefined: str) -> Statistic:
        def values(weights: FloatArray) -> FloatArray:
            return ratio(weights @ part, weights @ whole)

        return Statistic(metric, "image", subset, int(whole.sum()), values, undefined)

    return [
        statistic("lesion_sensitivity", "lesions", touched, lesions, "no lesions"),
        statistic("false_lesions_per_slice", "tumour_free", false, free, "no labelled tumour-free slices"),
    ]

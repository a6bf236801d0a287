"""What maps are worth case by case: volume, longest diameter, side, regions, and lesions in three dimensions.

One decision: a case is compared in the terms that a report of it has. Where there is a lesion in the map only or in the
mask only, side and regions are wrong, and there is no diameter to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medad_core.data.findings import SIDES
from medad_core.metrics.arrays import FloatArray
from medad_core.metrics.ranking import Values, ratio
from medad_core.metrics.statistic import Statistic

LIMIT = 1.96  # standard deviations that hold 95 % of differences (Bland and Altman 1986)
Summed = Callable[[npt.ArrayLike], FloatArray]  # values of cases to their sum for each patient


@dataclass(frozen=True)
class CaseComparison:
    """One labelled case, map and mask. Sides and diameters are None where there is no lesion.

    Regions are None where they are not named. `lesions` are those of the mask, `found` how many of them the map shows
    anything of, `false` lesions of the map that touch no tumour.
    """

    volume_ml: float
    volume_ml_true: float
    longest_mm: float | None
    longest_mm_true: float | None
    side: str | None
    side_true: str | None
    regions: tuple[str, ...] | None
    regions_true: tuple[str, ...] | None
    lesions: int
    found: int
    false: int


def case_statistics(comparisons: Mapping[str, CaseComparison], patient_of_case: Mapping[str, str]) -> list[Statistic]:
    """Errors of volume and diameter, F1 of sides and regions, and lesions, over the labelled cases of P patients."""
    number = {patient: place for place, patient in enumerate(dict.fromkeys(patient_of_case.values()))}
    cases = [case for case in patient_of_case if case in comparisons]
    rows = [comparisons[case] for case in cases]
    patient = np.array([number[patient_of_case[case]] for case in cases], int)

    def summed(values: npt.ArrayLike) -> FloatArray:
        return np.bincount(patient, weights=np.asarray(values, float), minlength=len(number)).astype(float)

    def mean(metric: str, subset: str, values: npt.ArrayLike, undefined: str) -> Statistic:
        errors = np.asarray(values, float)
        there = ~np.isnan(errors)
        total, count = summed(np.where(there, errors, 0)), summed(there)
        return _statistic(metric, subset, int(there.sum()), lambda w: ratio(w @ total, w @ count), undefined)

    differences = np.array([row.volume_ml - row.volume_ml_true for row in rows])
    relative = [
        abs(row.volume_ml - row.volume_ml_true) / row.volume_ml_true if row.volume_ml_true else np.nan for row in rows
    ]
    diameters = [
        np.nan if row.longest_mm is None or row.longest_mm_true is None else abs(row.longest_mm - row.longest_mm_true)
        for row in rows
    ]
    named = [row.regions is not None and row.regions_true is not None for row in rows]
    lesions, found, false = (summed([getattr(row, name) for row in rows]) for name in ("lesions", "found", "false"))
    ones = summed(np.ones(len(rows)))
    none = "no labelled cases"
    return [
        mean("volume_bias_ml", "all", differences, none),
        *(_limit(name, sign, differences, summed) for name, sign in (("low", -1), ("high", 1))),
        mean("volume_absolute_error_ml", "all", np.abs(differences), none),
        mean("volume_relative_error", "tumour", relative, "no cases with tumour"),
        mean("diameter_absolute_error_mm", "true_positive", diameters, "no cases with a lesion in map and mask"),
        _side_f1(rows, summed),
        _region_f1(rows, named, summed),
        _statistic(
            "case_lesion_sensitivity",
            "lesions",
            int(lesions.sum()),
            lambda w: ratio(w @ found, w @ lesions),
            "no lesions",
        ),
        _statistic("false_lesions_per_case", "all", len(rows), lambda w: ratio(w @ false, w @ ones), none),
    ]


def _statistic(metric: str, subset: str, n: int, values: Values, undefined: str) -> Statistic:
    return Statistic(metric, "case", subset, n, values, undefined)


def _limit(name: str, sign: int, differences: FloatArray, summed: Summed) -> Statistic:
    """A limit of agreement: the mean difference, and 1.96 standard deviations of differences below or above it."""
    count, total, squares = summed(np.ones(len(differences))), summed(differences), summed(differences**2)

    def values(weights: FloatArray) -> FloatArray:
        cases = weights @ count
        mean = ratio(weights @ total, cases)
        spread = np.maximum(ratio(weights @ squares, cases) - mean**2, 0) * ratio(cases, cases - 1)
        return mean + sign * LIMIT * np.sqrt(spread)

    undefined = "fewer than two labelled cases"
    return _statistic(f"volume_limit_{name}_ml", "all", len(differences), values, undefined)


def _side_f1(rows: Sequence[CaseComparison], summed: Summed) -> Statistic:
    """Mean over sides, of those that any case has in map or mask, of the F1 of naming it."""
    parts = []
    for side in SIDES:
        said = np.array([row.side == side for row in rows], float)
        true = np.array([row.side_true == side for row in rows], float)
        parts.append((summed(said * true), summed(said + true)))

    def values(weights: FloatArray) -> FloatArray:
        each = np.array([ratio(2 * (weights @ both), weights @ either) for both, either in parts])
        counted = ~np.isnan(each)
        return ratio(np.where(counted, each, 0).sum(axis=0), counted.sum(axis=0).astype(float))

    return _statistic("side_f1", "all", len(rows), values, "no cases with a lesion")


def _region_f1(rows: Sequence[CaseComparison], named: Sequence[bool], summed: Summed) -> Statistic:
    """F1 of regions named, all cases pooled."""
    pairs = [
        (set(row.regions or ()), set(row.regions_true or ())) if use else (set(), set())
        for row, use in zip(rows, named, strict=True)
    ]
    both = summed([len(said & true) for said, true in pairs])
    either = summed([len(said) + len(true) for said, true in pairs])
    undefined = "no regions are named"
    return _statistic("region_f1", "all", sum(named), lambda w: ratio(2 * (w @ both), w @ either), undefined)

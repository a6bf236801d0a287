"""What a run is worth: every metric of its predictions, split by split.

One decision: a cohort is measured by what there is of it. A slice without label, score or answer does not count where
that is needed; an answer that could not be read counts as wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from medad_core.metrics.answers import answer_statistics
from medad_core.metrics.arrays import FloatArray
from medad_core.metrics.bootstrap import patient_weights
from medad_core.metrics.cases import CaseComparison, case_statistics
from medad_core.metrics.columns import answers_of, numbers, patients_of, slice_units
from medad_core.metrics.decisions import (
    Decision,
    decision_statistics,
    majority_class_accuracy,
    sensitivity_by_size,
)
from medad_core.metrics.lesions import LesionCounts, lesion_statistics
from medad_core.metrics.maps import mean_dice, pixel_statistics, pooled_dice
from medad_core.metrics.patients import highest_scores, patient_units, vote
from medad_core.metrics.pixel import PixelHistogram
from medad_core.metrics.questions import question_statistics
from medad_core.metrics.scores import CURVES, OPERATING_POINTS, calibration_error, score_statistics
from medad_core.metrics.statistic import COHORT, Statistic
from medad_core.metrics.table import PATHOLOGY, MetricRow
from medad_core.metrics.units import Units

if TYPE_CHECKING:
    from medad_core.config import EvaluateSettings

OfSlice = Mapping[tuple[str, int], float]  # by case_id and slice_index
LESIONS_MM2 = (50.0, 200.0, 400.0, 800.0)  # edges between sizes of a slice's tumour


@dataclass(frozen=True)
class Evidence:
    """What is known of slices and cases beside their predictions; whatever is absent is not measured.

    `pixel`, `lesions` and `cases` have one entry a labelled case. `brightness` is `slice_brightness` of every slice,
    `area_mm2` the area of its tumour. `pathology` names that of cases. `asked` has the columns of the questions file.
    `learned_from` is the supervision of the weights.
    """

    pixel: Mapping[str, PixelHistogram] = field(default_factory=dict)
    lesions: Mapping[str, LesionCounts] = field(default_factory=dict)
    cases: Mapping[str, CaseComparison] = field(default_factory=dict)
    brightness: OfSlice = field(default_factory=dict)
    area_mm2: OfSlice = field(default_factory=dict)
    pathology: Mapping[str, str] = field(default_factory=dict)
    asked: pd.DataFrame | None = None
    learned_from: str = "not stated"


NOTHING = Evidence()


def evaluate(predictions: pd.DataFrame, settings: EvaluateSettings, evidence: Evidence = NOTHING) -> list[MetricRow]:
    """Every metric for "all", every split and every pathology, with 95 % intervals by bootstrap over patients.

    `predictions` has the columns of the predictions file. The same predictions and seed give the same table; no
    predictions give none.
    """
    # Sorted, so that a table does not depend on the order in which parts happened to be read.
    ordered = predictions.sort_values(["case_id", "slice_index"], kind="stable", ignore_index=True)
    if ordered.empty:
        return []
    frames = {"all": ordered}
    for split in sorted(ordered["split"].dropna().unique()):
        frames[split] = ordered[ordered["split"] == split]
    known = ordered["case_id"].map(dict(evidence.pathology))
    same = known.str.casefold() if known.notna().any() else known  # "Glioma" is "glioma"
    for _, rows in known.dropna().groupby(same):
        frames[f"{PATHOLOGY}{rows.iloc[0]}"] = ordered.loc[rows.index]
    rows = []
    for split, frame in frames.items():
        statistics = _statistics(frame, evidence, settings.map_threshold)
        weights = patient_weights(slice_units(frame).patients, settings.bootstrap, settings.seed)
        rows += [MetricRow.of(statistic, split, weights, evidence.learned_from) for statistic in statistics]
    return rows


def _statistics(frame: pd.DataFrame, evidence: Evidence, map_threshold: float) -> list[Statistic]:
    slices = slice_units(frame)
    patients = patient_units(slices)
    answers = answers_of(frame)
    scores = _scores(frame, evidence.brightness)
    scores_of_patients = {name: highest_scores(slices, score, 1, COHORT) for name, score in scores.items()}
    patient_of_case = dict(zip(frame["case_id"], patients_of(frame), strict=True))
    histograms = _by_patient(evidence.pixel, patient_of_case)
    thresholds = np.full(slices.patients, map_threshold)
    return [
        *_scored(slices, scores),
        *_named("p_yes", [calibration_error(slices, scores["p_yes"], probability=True)]),
        *_decided(slices, answers.decision),
        *_by_area(slices, answers.decision, _of_slices(frame, evidence.area_mm2)),
        *_of_lesions(evidence.lesions, patient_of_case),
        *_named("map", [*pixel_statistics(histograms), pooled_dice(histograms, thresholds)]),
        *_of_cases(evidence.cases, patient_of_case),
        *_scored(patients, scores_of_patients),
        *_decided(patients, vote(slices, answers.decision, least=1)),
        *_named("map", [mean_dice(histograms, thresholds)]),
        *answer_statistics(slices, answers, scores["map"], map_threshold),
        *_of_questions(evidence.asked, patient_of_case),
    ]


def _of_lesions(lesions: Mapping[str, LesionCounts], patient_of_case: Mapping[str, str]) -> list[Statistic]:
    """Lesion by lesion, where they were counted."""
    if not lesions:
        return []
    counts: dict[str, LesionCounts] = {}
    for case, patient in patient_of_case.items():
        counts[patient] = counts.get(patient, LesionCounts()) + lesions.get(case, LesionCounts())
    return _named("map", lesion_statistics(list(counts.values())))


def _of_cases(cases: Mapping[str, CaseComparison], patient_of_case: Mapping[str, str]) -> list[Statistic]:
    """Case by case, where their lesions were measured."""
    return _named("map", case_statistics(cases, patient_of_case)) if cases else []


def _of_questions(asked: pd.DataFrame | None, patient_of_case: Mapping[str, str]) -> list[Statistic]:
    """Question by question, where several were asked."""
    if asked is None:
        return []
    rows = asked[asked["case_id"].isin(patient_of_case)]
    patients = list(dict.fromkeys(patient_of_case.values()))
    return question_statistics(rows.assign(patient=rows["case_id"].map(patient_of_case)), patients)


def _of_slices(frame: pd.DataFrame, values: OfSlice) -> FloatArray:
    """The value of every row (N,), NaN where there is none."""
    keys = zip(frame["case_id"], frame["slice_index"], strict=True)
    return np.array([values.get((case, int(index)), np.nan) for case, index in keys], float)


def _scores(frame: pd.DataFrame, brightness: OfSlice) -> dict[str, FloatArray]:
    """Scores (N,) by name, NaN where absent."""
    return {
        "map": numbers(frame["anomaly_score"]),
        "p_yes": numbers(frame["p_yes"]),
        "brightness": _of_slices(frame, brightness),
    }


def _scored(units: Units, scores: Mapping[str, FloatArray]) -> list[Statistic]:
    """Curves of every score; of brightness only where it was measured."""
    statistics = []
    for name, score in scores.items():
        if name != "brightness" or not np.isnan(score).all():
            statistics += _named(name, score_statistics(units, score, COHORT, curves=(*CURVES, *OPERATING_POINTS)))
    return statistics


def _decided(units: Units, decision: Decision) -> list[Statistic]:
    return [
        *_named("verdict", decision_statistics(units, decision, COHORT)),
        majority_class_accuracy(units, decision),
    ]


def _by_area(slices: Units, decision: Decision, area_mm2: FloatArray) -> list[Statistic]:
    by_size = sensitivity_by_size(slices, decision, area_mm2, LESIONS_MM2)
    return [replace(statistic, metric="verdict_sensitivity_by_area") for statistic in by_size]


def _named(prefix: str, statistics: Sequence[Statistic]) -> list[Statistic]:
    return [replace(statistic, metric=f"{prefix}_{statistic.metric}") for statistic in statistics]


def _by_patient(pixel: Mapping[str, PixelHistogram], patient_of_case: Mapping[str, str]) -> list[PixelHistogram]:
    """One histogram a patient, the visits of one added up, in the order in which `slice_units` numbers patients."""
    # A case without a histogram gets an empty one of as many levels as the others have.
    levels = next((histogram.levels for histogram in pixel.values()), 4)
    histograms: dict[str, PixelHistogram] = {}
    for case, patient in patient_of_case.items():
        so_far = histograms.get(patient, PixelHistogram(levels))
        histograms[patient] = so_far + pixel.get(case, PixelHistogram(levels))
    return list(histograms.values())

"""The scores of one row and seed, all folds together, become thresholds, decisions and statistics.

One decision: a threshold is chosen on the validation patients of the same fold and the same group and nowhere else.
Where they do not allow one, the decisions of that fold are undefined, and so is every number that would rest on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medad_core.config import Settings
from medad_core.metrics import PixelHistogram
from medad_core.metrics.answers import answer_statistics
from medad_core.metrics.columns import answers_of, numbers, slice_units
from medad_core.metrics.decisions import Decision
from medad_core.metrics.patients import majority_vote, mean_scores, patient_units
from medad_core.metrics.statistic import Statistic
from medad_core.metrics.thresholds import Threshold, choose_pixel_threshold, choose_threshold
from medad_core.metrics.units import Units
from medad_core.reproduce.experiment import Experiment
from medad_core.reproduce.measures import RowUnits, row_statistics
from medad_core.reproduce.units import THROUGH_LLM, ScoredUnit

RULES = ("max_recall", "youden", "f1")
PROBABILITIES = (*THROUGH_LLM, "without-llm", "majority")  # rows whose score claims to be a probability

Histograms = Mapping[str, PixelHistogram]  # by case_id


@dataclass(frozen=True)
class Chosen:
    """A threshold with the fold, level (image, pixel or patient) and rule it belongs to."""

    fold: int
    level: str
    threshold: Threshold


@dataclass(frozen=True)
class SeedOfRow:
    """One row, group and seed.

    frame: its test slices (SCORES and `fold`, sorted by case and slice). thumbnails: maps by case_id and slice_index.
    training_errors: one a fold, where there are such.
    """

    frame: pd.DataFrame
    thresholds: tuple[Chosen, ...]
    units: RowUnits
    statistics: tuple[Statistic, ...]
    thumbnails: dict[tuple[str, int], np.ndarray]
    training_errors: tuple[float, ...]

    def threshold(self, fold: int, level: str, rule: str) -> float | None:
        """The threshold of a fold; None where it has none."""
        wanted = (fold, level, rule)
        chosen = (item.threshold for item in self.thresholds if (item.fold, item.level, item.threshold.rule) == wanted)
        return next((threshold.value for threshold in chosen), None)


def seed_of_row(
    row: str, group: str, experiment: Experiment, folds: Sequence[ScoredUnit], settings: Settings
) -> SeedOfRow:
    """Everything of one row, group and seed; `folds` are its units in order."""
    test, validation = _test_and_validation(group, experiment, folds)
    histograms = [_of_group(unit.histograms, group, experiment) for unit in folds]
    chosen = tuple(_thresholds(row, validation, histograms, experiment))
    units = _row_units(row, test, histograms, chosen, settings)
    statistics = row_statistics(units, settings.reproduce.lesion_area_mm2)
    if row in THROUGH_LLM:
        statistics += _answer_statistics(test, settings.evaluate.map_threshold)
    return SeedOfRow(
        frame=test,
        thresholds=chosen,
        units=units,
        statistics=tuple(statistics),
        thumbnails={key: picture for unit in folds for key, picture in unit.thumbnails.items()},
        training_errors=tuple(unit.training_error for unit in folds if unit.training_error is not None),
    )


def _test_and_validation(
    group: str, experiment: Experiment, folds: Sequence[ScoredUnit]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Slices of a group, with their fold."""
    slices = pd.concat([unit.frame.assign(fold=number) for number, unit in enumerate(folds)])
    slices = slices[slices["case_id"].map(experiment.group_of) == group]
    slices["patient"] = slices["case_id"].map(experiment.patient_of)
    slices = slices.sort_values(["case_id", "slice_index"], kind="stable", ignore_index=True)
    test = slices[slices["split"] == "test"].reset_index(drop=True)
    validation = slices[slices["split"] == "validation"].reset_index(drop=True)
    return test, validation


def _of_group(histograms: Histograms, group: str, experiment: Experiment) -> Histograms:
    return {case: histogram for case, histogram in histograms.items() if experiment.group_of(case) == group}


def _thresholds(
    row: str, validation: pd.DataFrame, histograms: Sequence[Histograms], experiment: Experiment
) -> Iterator[Chosen]:
    """Thresholds of each fold: for slices and patients by every rule, unless the row decides itself, and for pixels."""
    for fold, of_fold in enumerate(histograms):
        if row not in (*THROUGH_LLM, "majority"):
            slices = validation[validation["fold"] == fold]
            units = slice_units(slices)
            score = numbers(slices["score"])
            patients = patient_units(units)
            mean_score = mean_scores(units, score)
            for rule in RULES:
                yield Chosen(fold, "image", choose_threshold(score, units.positive, rule))
                yield Chosen(fold, "patient", choose_threshold(mean_score, patients.positive, rule))
        if of_fold:
            held_out = [of_fold[case] for case in of_fold if case in experiment.folds[fold].validation]
            yield Chosen(fold, "pixel", choose_pixel_threshold(sum(held_out, PixelHistogram())))


def _row_units(
    row: str,
    test: pd.DataFrame,
    histograms: Sequence[Histograms],
    chosen: Sequence[Chosen],
    settings: Settings,
) -> RowUnits:
    patient, names = pd.factorize(test["patient"])
    fold = np.zeros(len(names), int)
    fold[patient] = test["fold"]
    slices = Units("image", patient, fold, numbers(test["label"]))
    decisions, of_patients = _all_decisions(row, test, slices, chosen)
    pixel = {item.fold: item.threshold for item in chosen if item.level == "pixel"}
    missing = next((threshold.reason for threshold in pixel.values() if threshold.value is None), None)
    return RowUnits(
        patient=patient,
        fold=fold,
        label=slices.label,
        score=numbers(test["score"]),
        probability=row in PROBABILITIES,
        decisions=decisions,
        area_mm2=numbers(test["area_mm2"]),
        patient_decisions_mean=of_patients,
        k=settings.reproduce.patient_slices,
        histograms=_by_patient(test, histograms, names),
        pixel_thresholds=None if missing or not pixel else np.array([pixel[number].value for number in fold], float),
        pixel_reason=missing or "this row draws no map of its own",
    )


def _all_decisions(
    row: str, test: pd.DataFrame, slices: Units, chosen: Sequence[Chosen]
) -> tuple[tuple[Decision, ...], tuple[Decision, ...]]:
    """Decisions for slices, and for patients by their mean score or, where the row answers, by most of its answers."""
    if row in THROUGH_LLM:
        answer = Decision("answer", answers_of(test).decision.verdict, undecided_is_wrong=True)
        return (answer,), (majority_vote(slices, answer),)
    score = numbers(test["score"])
    of_slices = _decisions(row, score, slices.fold[slices.patient], "image", chosen)
    of_patients = _decisions(row, mean_scores(slices, score), slices.fold, "patient", chosen)
    return tuple(of_slices), tuple(of_patients)


def _decisions(
    row: str, score: np.ndarray, folds: np.ndarray, level: str, chosen: Sequence[Chosen]
) -> Iterator[Decision]:
    """One decision by every rule of a row that does not speak, from scores (N,) of the folds (N,)."""
    if row == "majority":
        yield Decision("always", (score >= 0.5).astype(float))
        return
    for rule in RULES:
        limits = {item.fold: item.threshold for item in chosen if (item.level, item.threshold.rule) == (level, rule)}
        # None becomes NaN: a fold without a threshold.
        cut = np.array([limits[fold].value for fold in folds], float)
        verdict = np.where(np.isnan(cut) | np.isnan(score), np.nan, score >= cut)
        missing = (f"fold {fold}: {limit.reason}" for fold, limit in limits.items() if limit.value is None)
        yield Decision(rule, verdict, next(missing, None))


def _by_patient(
    test: pd.DataFrame, histograms: Sequence[Histograms], names: Sequence[str]
) -> list[PixelHistogram] | None:
    """One histogram a test patient, from the fold that tests it; None for a row without maps."""
    if not any(histograms):
        return None
    total = {name: PixelHistogram() for name in names}
    for case, of_case in test.groupby("case_id"):
        first = of_case.iloc[0]
        total[first["patient"]] += histograms[first["fold"]][case]
    return list(total.values())


def _answer_statistics(test: pd.DataFrame, map_threshold: float) -> list[Statistic]:
    """Of the sentences; the share of yes says nothing here that the decisions do not."""
    statistics = answer_statistics(slice_units(test), answers_of(test), numbers(test["map_score"]), map_threshold)
    return [statistic for statistic in statistics if statistic.metric != "yes_share"]

"""The scores of one row and seed, all folds together, as what the metrics take: decisions, units, statistics.

One decision: a threshold is chosen on the validation patients of the same fold and the same group and nowhere else. Where they
do not allow one, the decisions of that fold are undefined, and so is every number that would rest on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medad_core.config import Settings
from medad_core.data.names import patient_of
from medad_core.metrics.columns import Units, slice_units
from medad_core.metrics.pixel import PixelHistogram
from medad_core.metrics.rows import Decision, RowUnits, RuledStatistic, row_statistics
from medad_core.metrics.statistics import text_statistics
from medad_core.metrics.thresholds import Threshold, choose_pixel_threshold, choose_threshold
from medad_core.reproduce.study import Study
from medad_core.reproduce.units import THROUGH_LLM, Scored

RULES = ("max_recall", "youden", "f1")
PROBABILITIES = (*THROUGH_LLM, "without-llm", "majority")  # rows whose score claims to be a probability


@dataclass(frozen=True)
class Chosen:
    """A threshold with the fold, level (image, pixel or patient) and rule it belongs to."""

    fold: int
    level: str
    threshold: Threshold


@dataclass(frozen=True)
class SeedOfRow:
    """One row, group and seed: its test slices (SCORES and `fold`, sorted by case and slice), thresholds, units, statistics, thumbnails by key,
    and the training error of each fold, where there are such."""

    frame: pd.DataFrame
    thresholds: tuple[Chosen, ...]
    units: RowUnits
    statistics: tuple[RuledStatistic, ...]
    thumbnails: dict[tuple[str, int], np.ndarray]
    training_errors: tuple[float, ...]


def seed_of_row(row: str, group: str, study: Study, folds: Sequence[Scored], settings: Settings) -> SeedOfRow:
    """Everything of one row, group and seed; `folds` are its units in order."""
    everything = pd.concat([scored.frame.assign(fold=number) for number, scored in enumerate(folds)])
    everything = everything[everything["case_id"].map(study.group_of) == group].sort_values(
        ["case_id", "slice_index"], kind="stable", ignore_index=True
    )
    test, validation = (
        everything[everything["split"] == split].reset_index(drop=True) for split in ("test", "validation")
    )
    histograms = [
        {case: found for case, found in scored.histograms.items() if study.group_of(case) == group} for scored in folds
    ]
    chosen = tuple(_thresholds(row, validation, histograms, study))
    units = _row_units(row, test, histograms, chosen, settings)
    errors = tuple(scored.training_error for scored in folds if scored.training_error is not None)
    statistics = tuple(row_statistics(units, settings.reproduce.lesion_area_mm2)) + tuple(_text(row, test, settings))
    return SeedOfRow(
        test,
        chosen,
        units,
        statistics,
        {key: picture for scored in folds for key, picture in scored.thumbnails.items()},
        errors,
    )


def _thresholds(
    row: str, validation: pd.DataFrame, histograms: Sequence[dict[str, PixelHistogram]], study: Study
) -> Iterator[Chosen]:
    for fold, found in enumerate(histograms):
        rows = validation[validation["fold"] == fold]
        if row not in (*THROUGH_LLM, "majority"):
            patients = rows.groupby(rows["case_id"].map(patient_of)).agg(score=("score", _mean), label=("label", "max"))
            for rule in RULES:
                yield Chosen(
                    fold, "image", choose_threshold(rows["score"].to_numpy(), rows["label"].to_numpy() == 1, rule)
                )
                yield Chosen(
                    fold,
                    "patient",
                    choose_threshold(patients["score"].to_numpy(), patients["label"].to_numpy() == 1, rule),
                )
        held = [histogram for case, histogram in found.items() if case in study.folds[fold].validation]
        if found:
            yield Chosen(fold, "pixel", choose_pixel_threshold(sum(held[1:], held[0]) if held else PixelHistogram()))


def _mean(scores: pd.Series) -> float:
    """Of a patient's slices; NaN where one is (pandas would skip it)."""
    return float(np.mean(scores.to_numpy()))


def _row_units(
    row: str,
    test: pd.DataFrame,
    histograms: Sequence[dict[str, PixelHistogram]],
    chosen: Sequence[Chosen],
    settings: Settings,
) -> RowUnits:
    patient, names = pd.factorize(test["case_id"].map(patient_of))
    fold_of = test.groupby(patient)["fold"].first().reindex(range(len(names))).to_numpy()
    means = test.groupby(patient)["score"].agg(_mean).reindex(range(len(names))).to_numpy()
    pixel = {item.fold: item.threshold for item in chosen if item.level == "pixel"}
    missing = next((threshold.reason for threshold in pixel.values() if threshold.value is None), None)
    return RowUnits(
        patient=patient,
        fold=fold_of,
        label=test["label"].to_numpy(float),
        score=test["score"].to_numpy(float),
        probability=row in PROBABILITIES,
        decisions=tuple(_decisions(row, test, test["score"].to_numpy(float), test["fold"].to_numpy(), "image", chosen)),
        area_mm2=test["area_mm2"].to_numpy(float),
        patient_decisions_mean=tuple(_patient_decisions(row, test, patient, means, fold_of, chosen)),
        k=settings.reproduce.patient_slices,
        histograms=_by_patient(test, histograms, names),
        pixel_thresholds=None if missing or not pixel else np.array([pixel[fold].value for fold in fold_of], float),
        pixel_reason=missing or "this row draws no map of its own",
    )


def _decisions(
    row: str, test: pd.DataFrame, scores: np.ndarray, folds: np.ndarray, level: str, chosen: Sequence[Chosen]
) -> Iterator[Decision]:
    """One decision by every rule of the row. An answer that could not be read is undecided, and counts as wrong at every level."""
    if row == "majority":
        yield Decision("always", (scores >= 0.5).astype(float))
        return
    if row in THROUGH_LLM:
        yield Decision("answer", _answered(test), undecided_is_wrong=True)
        return
    for rule in RULES:
        limits = {item.fold: item.threshold for item in chosen if (item.level, item.threshold.rule) == (level, rule)}
        cut = np.array([np.nan if limits[fold].value is None else limits[fold].value for fold in folds], float)
        decided = np.where(np.isnan(cut) | np.isnan(scores), np.nan, scores >= cut)
        yield Decision(
            rule,
            decided,
            next((f"fold {fold}: {limit.reason}" for fold, limit in limits.items() if limit.value is None), None),
        )


def _answered(test: pd.DataFrame) -> np.ndarray:
    """The verdicts (N,), NaN for an answer that could not be read."""
    return test["verdict"].map({"yes": 1.0, "no": 0.0}).where(test["answer_parsed"].astype(bool)).to_numpy(float)


def _patient_decisions(
    row: str, test: pd.DataFrame, patient: np.ndarray, means: np.ndarray, fold_of: np.ndarray, chosen: Sequence[Chosen]
) -> Iterator[Decision]:
    """Decisions on a patient's mean: of its scores, or of its yes answers where the row answers, undecided where those not read could turn it."""
    if row in THROUGH_LLM:
        said, count = _answered(test), np.bincount(patient)
        yes, unread = np.bincount(patient, weights=said == 1), np.bincount(patient, weights=np.isnan(said))
        share = np.where(yes / count >= 0.5, 1.0, np.where((yes + unread) / count < 0.5, 0.0, np.nan))
        yield Decision("answer", share, undecided_is_wrong=True)
        return
    yield from _decisions(row, test, means, fold_of, "patient", chosen)


def _by_patient(
    test: pd.DataFrame, histograms: Sequence[dict[str, PixelHistogram]], names: Sequence[str]
) -> list[PixelHistogram] | None:
    """One histogram a test patient, from the fold that tests it; None for a row without maps."""
    if not any(histograms):
        return None
    total = {name: PixelHistogram() for name in names}
    for case, fold in test.groupby("case_id")["fold"].first().items():
        total[patient_of(case)] = total[patient_of(case)] + histograms[fold][case]
    return list(total.values())


def _text(row: str, test: pd.DataFrame, settings: Settings) -> Iterator[RuledStatistic]:
    if row not in THROUGH_LLM:
        return
    units: Units = slice_units(test.assign(anomaly_score=test["map_score"], p_yes=test["score"]), None)
    for found in text_statistics(units, settings.evaluate.map_threshold):
        if found.metric != "yes_share":
            yield RuledStatistic(found.metric, found.level, "", found.subset, found.n, found.values, found.undefined)

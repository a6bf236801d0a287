"""The metrics table, long form: one row a metric, level and split.

One decision: a metric that is undefined for a cohort stays in the table, null and with its reason. A missing row would read
like an oversight, and a zero like a bad model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa

from medad_core.data.names import patient_of
from medad_core.metrics.bootstrap import Interval, interval, patient_weights
from medad_core.metrics.columns import Brightness, patient_units, slice_units
from medad_core.metrics.pixel import PixelHistogram
from medad_core.metrics.statistics import (
    Statistic,
    patient_dice,
    pixel_statistics,
    score_statistics,
    text_statistics,
    verdict_statistics,
)  # fmt: skip

if TYPE_CHECKING:
    from medad_core.config import EvaluateSettings

METRICS = pa.schema(
    [
        ("metric", pa.string()),
        ("level", pa.string()),
        ("split", pa.string()),
        ("subset", pa.string()),
        ("value", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("n", pa.int64()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class MetricRow:
    """One metric. `value` lies in [0, 1], or is None where undefined; `reason` says why, or what the interval leaves out.

    level: image, pixel, patient or text. split: one of the run's, or "all". subset: the units that `n` counts, in the level's
    unit (slices for text): all, tumour, tumour_free, true_positive, parsed.
    """

    metric: str
    level: str
    split: str
    subset: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    reason: str | None


def evaluate(
    predictions: pd.DataFrame,
    pixel: Mapping[str, PixelHistogram] | None,
    settings: EvaluateSettings,
    brightness: Brightness | None = None,
) -> list[MetricRow]:
    """Every metric for every split present and for "all", with 95 % intervals by bootstrap over patients.

    `predictions` has the columns of the predictions file; `pixel` one histogram a labelled case; `brightness` maps
    (case_id, slice_index) to `slice_brightness`. The same predictions and seed give the same table;
    no predictions give none.
    """
    # Sorted, so that a table does not depend on the order in which parts happened to be read.
    ordered = predictions.sort_values(["case_id", "slice_index"], kind="stable", ignore_index=True)
    if ordered.empty:
        return []
    splits = sorted(ordered["split"].dropna().unique())
    frames = [("all", ordered), *((split, ordered[ordered["split"] == split]) for split in splits)]
    return [row for split, frame in frames for row in _evaluate_split(split, frame, pixel or {}, settings, brightness)]


def metrics_table(rows: Sequence[MetricRow]) -> pa.Table:
    """The rows as the Arrow table of `metrics.parquet` (schema `METRICS`)."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=METRICS)


def metric_rows(table: pa.Table) -> list[MetricRow]:
    """The inverse of `metrics_table`."""
    return [MetricRow(**row) for row in table.to_pylist()]


def _evaluate_split(
    split: str,
    frame: pd.DataFrame,
    pixel: Mapping[str, PixelHistogram],
    settings: EvaluateSettings,
    brightness: Brightness | None,
) -> list[MetricRow]:
    slices = slice_units(frame, brightness)
    patients = patient_units(slices)
    histograms = _by_patient(pixel, pd.unique(frame["case_id"]))
    statistics = [
        *score_statistics(slices, "image"),
        *verdict_statistics(slices, "image"),
        *pixel_statistics(histograms, settings.map_threshold),
        *score_statistics(patients, "patient"),
        *verdict_statistics(patients, "patient"),
        patient_dice(histograms, settings.map_threshold),
        *text_statistics(slices, settings.map_threshold),
    ]
    draws = patient_weights(slices.patients, settings.bootstrap, settings.seed)
    return [_row(statistic, split, draws, slices.patients) for statistic in statistics]


def _row(statistic: Statistic, split: str, draws: np.ndarray, patients: int) -> MetricRow:
    value = float(statistic.values(np.ones((1, patients)))[0])
    head = (statistic.metric, statistic.level, split, statistic.subset)
    if np.isnan(value):
        return MetricRow(*head, None, None, None, statistic.n, statistic.undefined)
    spread: Interval = interval(statistic.values(draws), patients)
    return MetricRow(*head, value, spread.low, spread.high, statistic.n, spread.reason)


def _by_patient(pixel: Mapping[str, PixelHistogram], cases: Sequence[str]) -> list[PixelHistogram]:
    """One histogram a patient, the visits of one added up, in the order in which `slice_units` numbers patients."""
    found: dict[str, PixelHistogram] = {}
    for case in cases:
        patient = patient_of(case)
        found[patient] = found.get(patient, PixelHistogram(_levels(pixel))) + pixel.get(
            case, PixelHistogram(_levels(pixel))
        )
    return list(found.values())


def _levels(pixel: Mapping[str, PixelHistogram]) -> int:
    """Levels of the histograms at hand, so that a case without one gets an empty one of the same kind."""
    return next((histogram.levels for histogram in pixel.values()), 4)

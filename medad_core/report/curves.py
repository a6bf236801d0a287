"""What the page draws of a run's metrics: ROC and precision-recall of every detector, sensitivity by size of tumour.

One decision: a curve is drawn of the very scores whose area stands beside it, by scikit-learn, and nothing is
smoothed; areas and intervals are those of `metrics.parquet`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve

from medad_core.metrics import MetricRow

FloatArray = npt.NDArray[np.float64]
DETECTORS = {"map": "Map", "p_yes": "p(yes) of the language model", "brightness": "Brightness alone"}
_SIZE = "verdict_sensitivity_by_area"


@dataclass(frozen=True)
class Curve:
    """A detector's curve as the path of an SVG of 100 × 100, and the row of the metrics with the area under it."""

    detector: str
    title: str
    path: str
    area: MetricRow


@dataclass(frozen=True)
class Curves:
    """ROC and precision-recall of the same detectors; none where nothing is defined. `share` has tumour."""

    roc: tuple[Curve, ...] = ()
    precision_recall: tuple[Curve, ...] = ()
    share: float = 0.0


def curves(predictions: pd.DataFrame, brightness: Mapping[tuple[str, int], float], rows: Sequence[MetricRow]) -> Curves:
    """The curves of labelled `predictions` of one split, and of `brightness` by case and slice; `rows` of that split.

    A detector without scores, or whose area is undefined, has no curve.
    """
    labelled = predictions.dropna(subset=["label"])
    labels = labelled["label"].to_numpy(int)
    keys = zip(labelled["case_id"], labelled["slice_index"], strict=True)
    scores = {
        "map": labelled["anomaly_score"].to_numpy(float),
        "p_yes": labelled["p_yes"].to_numpy(float),
        "brightness": np.array([brightness.get((case, int(at)), np.nan) for case, at in keys], float),
    }
    areas = {row.metric: row for row in rows if row.level == "image" and row.value is not None}
    roc, precision_recall = [], []
    for detector, title in DETECTORS.items():
        usable = ~np.isnan(scores[detector])
        truth, score = labels[usable], scores[detector][usable]
        if not truth.size:
            continue
        if f"{detector}_auroc" in areas:
            roc.append(Curve(detector, title, _roc(truth, score), areas[f"{detector}_auroc"]))
        if f"{detector}_ap" in areas:
            precision_recall.append(Curve(detector, title, _precision_recall(truth, score), areas[f"{detector}_ap"]))
    return Curves(tuple(roc), tuple(precision_recall), float(labels.mean()) if len(labels) else 0.0)


def sensitivity_by_size(rows: Sequence[MetricRow]) -> list[MetricRow]:
    """Sensitivity of the verdict by the area of the tumour in the slice, the smallest first."""
    return [row for row in rows if row.metric == _SIZE]


def _roc(labels: npt.NDArray[np.int_], scores: FloatArray) -> str:
    """Straight between its points: ties count half, as in the area."""
    false_positive, true_positive, _ = roc_curve(labels, scores)
    return "M" + "L".join(_points(false_positive, true_positive))


def _precision_recall(labels: npt.NDArray[np.int_], scores: FloatArray) -> str:
    """In steps: the area is the mean precision over the steps of recall, and nothing lies between them."""
    precision, recall, _ = precision_recall_curve(labels, scores, drop_intermediate=True)
    return "M" + "L".join(_points(np.repeat(recall, 2)[1:-1], np.repeat(precision[:-1], 2)))


def _points(x: FloatArray, y: FloatArray) -> list[str]:
    """Points in [0, 1] as those of an SVG of 100 × 100; those that look the same are one."""
    texts = (f"{100 * across:.1f} {100 - 100 * up:.1f}" for across, up in zip(x, y, strict=True))
    return [text for text, _ in groupby(texts)]

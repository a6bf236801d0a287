"""How good a detector is: image, pixel, case, patient and text metrics with intervals over patients.

One decision: there is one engine. `units` are what is judged. `scores`, `decisions`, `maps` and `answers` make
statistics of them, which are functions of how often each patient counts. `bootstrap.estimate` gives their values and
intervals. Screening (`evaluate`), the paper's table and the training card call it, with a `Policy` for what is missing.
"""

from medad_core.metrics.brightness import slice_brightness
from medad_core.metrics.cases import CaseComparison
from medad_core.metrics.lesions import LesionCounts, count_lesions
from medad_core.metrics.markdown import render_markdown
from medad_core.metrics.pixel import PixelHistogram
from medad_core.metrics.screening import Evidence, evaluate
from medad_core.metrics.table import METRICS, MetricRow, metric_rows, metrics_table

__all__ = [
    "METRICS",
    "CaseComparison",
    "Evidence",
    "LesionCounts",
    "MetricRow",
    "PixelHistogram",
    "count_lesions",
    "evaluate",
    "metric_rows",
    "metrics_table",
    "render_markdown",
    "slice_brightness",
]

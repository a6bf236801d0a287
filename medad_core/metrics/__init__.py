"""How good a run is: image, pixel, patient and text metrics with intervals over patients, and the table they go into."""

from medad_core.metrics.brightness import slice_brightness
from medad_core.metrics.markdown import render_markdown
from medad_core.metrics.pixel import PixelHistogram
from medad_core.metrics.screening import evaluate
from medad_core.metrics.table import METRICS, MetricRow, metric_rows, metrics_table

__all__ = [
    "METRICS",
    "MetricRow",
    "PixelHistogram",
    "evaluate",
    "metric_rows",
    "metrics_table",
    "render_markdown",
    "slice_brightness",
]

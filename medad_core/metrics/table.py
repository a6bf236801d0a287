"""The metrics table, long form: one row a metric, level and split.

One decision: a metric that is undefined for a cohort stays in the table, null and with its reason. A missing row
would read like an oversight, and a zero like a bad model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from medad_core.metrics.arrays import FloatArray
from medad_core.metrics.bootstrap import estimate
from medad_core.metrics.names import supervision_of
from medad_core.metrics.statistic import Statistic

PATHOLOGY = "pathology: "
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
        ("supervision", pa.string()),
    ]
)


@dataclass(frozen=True)
class MetricRow:
    """One metric: its `value`, or None where undefined; `reason` says why, or what the interval leaves out.

    Values are shares, but for numbers per slice or case, ml and mm. level: image, pixel, case, patient or text. split:
    one of the run's, "all", or "pathology: " and its name. subset: the units that `n` counts, in the level's unit
    (slices for text): all, tumour, tumour_free, true_positive, parsed, lesions, or the name of a question. supervision:
    what the model that is measured has learned from; "" in tables of earlier versions.
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
    supervision: str = ""

    @classmethod
    def of(cls, statistic: Statistic, split: str, weights: FloatArray, learned_from: str) -> MetricRow:
        """The value of a statistic with its interval from drawn patient weights (B, P).

        `learned_from` is the supervision of decoder and converter.
        """
        supervision = supervision_of(statistic.metric, learned_from)
        head = (statistic.metric, statistic.level, split, statistic.subset)
        measured = estimate(statistic.values, weights)
        if np.isnan(measured.value):
            return cls(*head, None, None, None, statistic.n, statistic.undefined, supervision)
        spread = measured.interval
        return cls(*head, measured.value, spread.low, spread.high, statistic.n, spread.reason, supervision)


def metrics_table(rows: Sequence[MetricRow]) -> pa.Table:
    """The rows as the Arrow table of `metrics.parquet` (schema `METRICS`)."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=METRICS)


def metric_rows(table: pa.Table) -> list[MetricRow]:
    """The inverse of `metrics_table`."""
    return [MetricRow(**row) for row in table.to_pylist()]

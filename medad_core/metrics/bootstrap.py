"""95 % intervals by bootstrap over patients.

One decision: patients are drawn, not slices. Slices of one patient resemble each other, and drawing them one by one
would make every interval far too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medad_core.metrics.arrays import FloatArray
from medad_core.metrics.ranking import Values

_LOW, _HIGH = 2.5, 97.5


@dataclass(frozen=True)
class Interval:
    """Percentile interval; `low` and `high` are None with a `reason` where there is none.

    `dropped` replicates were undefined.
    """

    low: float | None
    high: float | None
    dropped: int
    reason: str | None


@dataclass(frozen=True)
class Estimate:
    """A metric of P `patients`: its `value`, NaN where undefined, and its bootstrap `replicates` (B,), NaN then too."""

    value: float
    replicates: FloatArray
    patients: int

    @property
    def interval(self) -> Interval:
        """The interval of the value."""
        return interval(self.replicates, self.patients)


def estimate(values: Values, weights: FloatArray) -> Estimate:
    """What a metric is, with weights of one, and what it is with each row of drawn weights (B, P)."""
    replicates, patients = weights.shape
    value = float(values(np.ones((1, patients)))[0])
    if np.isnan(value):
        return Estimate(value, np.full(replicates, np.nan), patients)
    return Estimate(value, values(weights), patients)


def patient_weights(patients: int, replicates: int, seed: int) -> FloatArray:
    """How often each patient was drawn: (replicates, patients) float64, every row sums to `patients`."""
    if patients < 2 or replicates < 1:
        return np.zeros((0, patients))
    draws = np.random.default_rng(seed).multinomial(patients, np.full(patients, 1 / patients), size=replicates)
    return draws.astype(float)


def interval(replicates: FloatArray, patients: int) -> Interval:
    """Interval of a metric from its bootstrap replicates, (B,) with NaN where a draw left it undefined."""
    if patients < 2:
        return Interval(None, None, 0, "no interval from one patient")
    if not len(replicates):
        return Interval(None, None, 0, "no interval: bootstrap switched off")
    defined = replicates[~np.isnan(replicates)]
    dropped = len(replicates) - len(defined)
    # Below half, the interval would describe the lucky draws rather than the metric.
    if 2 * len(defined) < len(replicates):
        return Interval(None, None, dropped, f"no interval: undefined in {dropped} of {len(replicates)} draws")
    reason = f"interval without {dropped} of {len(replicates)} draws, undefined there" if dropped else None
    low, high = np.percentile(defined, [_LOW, _HIGH])
    return Interval(float(low), float(high), dropped, reason)

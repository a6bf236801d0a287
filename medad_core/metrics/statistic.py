"""A metric as a function of how often every patient counts.

One decision: a metric is a function from patient weights (B, P) to values (B,). Weights of one give the value itself,
drawn weights its bootstrap, and both come from the same lines. NaN says undefined and travels with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medad_core.metrics.arrays import FloatArray
from medad_core.metrics.ranking import Values


@dataclass(frozen=True)
class Statistic:
    """A metric of one level: image, pixel, case, patient or text.

    `rule` says how a score became a decision, and is empty where it did not. `n` counts the units of the level in
    `subset` that the metric is taken over. `values` maps weights (B, P) to values (B,), and `undefined` says why they
    may be NaN.
    """

    metric: str
    level: str
    subset: str
    n: int
    values: Values
    undefined: str
    rule: str = ""


@dataclass(frozen=True)
class Policy:
    """What becomes of a number where something is missing.

    `leave_out`: a unit without a score does not count. Otherwise it makes every number undefined that would rest on
    it. `one_class`: accuracy and F1 are given where all units are of one class. Otherwise they are undefined there,
    because they would be sensitivity or specificity under a name that promises more.
    """

    leave_out: bool
    one_class: bool


# A cohort is measured by what there is of it; detectors are compared on the very same slices or not at all.
COHORT = Policy(leave_out=True, one_class=True)
COMPARISON = Policy(leave_out=False, one_class=False)


def never(weights: FloatArray) -> FloatArray:
    """The values of a metric that is undefined whatever the weights (B, P): NaN (B,)."""
    return np.full(len(weights), np.nan)

"""How far p(yes) can be taken at its word: the share of slices with tumour among those with about the same p(yes).

One decision: the bins are those of the calibration error in the table beside it, so the figure shows what it adds up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medad_core.metrics.scores import ECE_BINS


@dataclass(frozen=True)
class Bin:
    """Slices whose p(yes) lies in one of 15 equal ranges: how many, their mean p(yes), the share with tumour."""

    slices: int
    claimed: float
    found: float


def reliability_bins(predictions: pd.DataFrame) -> list[Bin]:
    """The bins that hold labelled slices, by rising p(yes); none where nothing is labelled."""
    labelled = predictions.dropna(subset=["label", "p_yes"])
    claimed = labelled["p_yes"].to_numpy(float)
    found = labelled["label"].to_numpy(float)
    number = np.minimum((claimed * ECE_BINS).astype(int), ECE_BINS - 1)
    return [
        Bin(int(own.sum()), float(claimed[own].mean()), float(found[own].mean()))
        for own in (number == bin_ for bin_ in np.unique(number))
    ]


def radii(bins: Sequence[Bin], smallest: float = 1.2, largest: float = 6.0) -> list[float]:
    """The radius of every bin's dot: its area grows with the number of slices."""
    most = max((one.slices for one in bins), default=1)
    return [max(smallest, largest * (one.slices / most) ** 0.5) for one in bins]

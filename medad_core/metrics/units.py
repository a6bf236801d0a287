"""What is judged: slices, or patients seen as one unit each.

One decision: a unit knows its label, its patient and nothing else. Scores, decisions and answers come beside it, so
that one set of units serves them all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medad_core.metrics.arrays import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class Units:
    """N units of one `level` (image or patient), of P patients.

    patient: (N,) int, column of the bootstrap weights. fold: (P,) int, the model that scored each patient; scores of
    two folds are on two scales. label: (N,) float 0/1, NaN where unlabelled.
    """

    level: str
    patient: IntArray
    fold: IntArray
    label: FloatArray

    @property
    def patients(self) -> int:
        """P, how many patients there are."""
        return len(self.fold)

    @property
    def noun(self) -> str:
        """What the units are, in the plural."""
        return "patients" if self.level == "patient" else "slices"

    @property
    def labelled(self) -> BoolArray:
        """(N,) bool."""
        return ~np.isnan(self.label)

    @property
    def positive(self) -> BoolArray:
        """With tumour: (N,) bool."""
        return np.equal(self.label, 1)

    @property
    def negative(self) -> BoolArray:
        """Tumour-free: (N,) bool."""
        return np.equal(self.label, 0)

    def count(self, flags: BoolArray) -> FloatArray:
        """Flags (N,) to how many of them each patient has, float64 (P,)."""
        return np.bincount(self.patient, weights=flags.astype(float), minlength=self.patients).astype(float)

    def why_unscored(self, score: FloatArray, too_few: str | None = None) -> str | None:
        """Why a score (N,) is not there for every labelled unit, `too_few` before others; None where it is."""
        if not self.labelled.any():
            return f"no labelled {self.noun}"
        bad = int(np.isnan(score[self.labelled]).sum())
        return (too_few or f"{bad} scores are not numbers") if bad else None

    def why_undefined(self, judged: BoolArray, what: str) -> str:
        """Why a metric that needs both classes has no value over the units `judged` (N,) bool, those with `what`."""
        if not self.labelled.any():
            return f"no labelled {self.noun}"
        if not judged.any():
            return f"no {what} for labelled {self.noun}"
        if not (judged & self.positive).any():
            return f"one class only: no {self.noun} with tumour"
        if not (judged & self.negative).any():
            return f"one class only: no tumour-free {self.noun}"
        return f"one class only in every fold of these {self.noun}"

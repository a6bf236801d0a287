"""What is judged: slices, or patients seen as one unit each.

One decision: a unit knows its label, its patient and nothing else. Scores, decisions and answers come beside it, so that one
set of units serves them all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medad_core.metrics.arrays import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class Units:
    """N units of one `level` (image or patient), of P patients.

    patient: (N,) int, column of the bootstrap weights. fold: (P,) int, the model that scored each patient; scores of two
    folds are on two scales. label: (N,) float 0/1, NaN where unlabelled.
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
        return self.label == 1

    @property
    def negative(self) -> BoolArray:
        """Tumour-free: (N,) bool."""
        return self.label == 0

    def count(self, flags: BoolArray) -> FloatArray:
        """Flags (N,) to how many of them each patient has, float64 (P,)."""
        return np.bincount(self.patient, weights=flags, minlength=self.patients)

    def why_unscored(self, score: FloatArray, too_few: str | None = None) -> str | None:
        """Why a score (N,) does not cover the labelled units, None where it does; `too_few` is a reason that comes first."""
        if not self.labelled.any():
            return f"no labelled {self.noun}"
        bad = int(np.isnan(score[self.labelled]).sum())
        return (too_few or f"{bad} scores are not numbers") if bad else None

    def why_undefined(self, judged: BoolArray, what: str) -> str:
        """Why a metric that needs both classes has no value over the units `judged` (N,), those with `what` (scores, answers)."""
        if not self.labelled.any():
            return f"no labelled {self.noun}"
        if not judged.any():
            return f"no {what} for labelled {self.noun}"
        if not (judged & self.positive).any():
            return f"one class only: no {self.noun} with tumour"
        if not (judged & self.negative).any():
            return f"one class only: no tumour-free {self.noun}"
        return f"one class only in every fold of these {self.noun}"

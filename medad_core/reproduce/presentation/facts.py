"""What is to be printed beside the numbers, and the slices that a row got wrong.

One decision: whoever prints never opens an experiment. Everything that is shown comes in through these classes, so
what is printed can be tested with a made-up table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

FALSE_POSITIVE = "false positive"
FALSE_NEGATIVE = "false negative"


@dataclass(frozen=True)
class GroupFacts:
    """A group (patients or phantoms): how many there are, how many of them are tested, and on how many slices.

    `dealt` counts the patients trained on, validated on and tested on in each fold.
    """

    name: str
    patients: int
    tested_patients: int
    slices: int
    tumour_free: int
    dealt: tuple[tuple[int, ...], ...] = ()

    @property
    def majority_accuracy(self) -> float | None:
        """Accuracy of the commoner answer given to every slice; None without slices."""
        return max(self.tumour_free, self.slices - self.tumour_free) / self.slices if self.slices else None


@dataclass(frozen=True)
class ThresholdNote:
    """A threshold chosen on the validation patients of one fold, of the `level` image, patient or pixel.

    `value` is None where none could be chosen, for the `reason` given.
    """

    row: str
    group: str
    fold: int
    seed: int
    level: str
    rule: str
    value: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Facts:
    """What a table was made of.

    `data` names the data. `failed` has every row asked for: None, or why it failed. `rule` is the threshold rule of
    the main decisions, `patient_slices` the k of the patient rule "k of n". `settings` is the YAML that was run,
    `notes` are further sentences for the reader.
    """

    data: str
    groups: tuple[GroupFacts, ...]
    folds: int
    seeds: tuple[int, ...]
    rule: str
    patient_slices: int
    failed: Mapping[str, str | None]
    thresholds: tuple[ThresholdNote, ...] = ()
    settings: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class GallerySlice:
    """A slice that a row got wrong: `image` uint8 (H, W), `mask` bool (H, W), `anomaly_map` float in [0, 1] of the
    same part of the picture at any size, or None for a row that draws none. `threshold` is None where the row's own
    answer decided.

    Raises ValueError for a slice that is no such error, so that a gallery cannot show what was right.
    """

    kind: str
    case_id: str
    slice_index: int
    score: float
    threshold: float | None
    label: int
    area_mm2: float
    image: np.ndarray
    mask: np.ndarray
    anomaly_map: np.ndarray | None
    answer: str | None

    def __post_init__(self) -> None:
        positive = {FALSE_POSITIVE: True, FALSE_NEGATIVE: False}[self.kind]
        if positive == bool(self.label):
            raise ValueError(f"{self.case_id}, slice {self.slice_index}: label {self.label} cannot be a {self.kind}")
        if self.threshold is not None and (self.score >= self.threshold) != positive:
            decided = f"score {self.score} at threshold {self.threshold}"
            raise ValueError(f"{self.case_id}, slice {self.slice_index}: {decided} is no {self.kind}")


@dataclass(frozen=True)
class GalleryRow:
    """The worst errors of a row in a group, by its main `rule`.

    The totals count all its errors, shown or not; None where unknown.
    """

    row: str
    title: str
    group: str
    rule: str
    items: tuple[GallerySlice, ...]
    false_positives: int | None = None
    false_negatives: int | None = None

    def worst(self, kind: str) -> list[GallerySlice]:
        """The false positives of highest score first, or the false negatives of lowest."""
        sign = -1 if kind == FALSE_POSITIVE else 1
        chosen = [item for item in self.items if item.kind == kind]
        return sorted(chosen, key=lambda item: (sign * item.score, item.case_id, item.slice_index))

    def total(self, kind: str) -> int:
        """How many errors of a kind there are, as far as that is known."""
        known = self.false_positives if kind == FALSE_POSITIVE else self.false_negatives
        return len(self.worst(kind)) if known is None else known

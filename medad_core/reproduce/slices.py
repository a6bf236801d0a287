"""Slices of many cases as one sequence, read from memory maps when they are asked for.

One decision: whoever trains or scores sees positions 0 to n-1 and nothing of cases, so every row of the table gets
the very same slices, whatever it makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medad_core.models.encoder import pad_to_square
from medad_core.training.features import TrainingCase


@dataclass(frozen=True)
class Slices:
    """`picks` are (case, position in its arrays). Implements `medad_core.baselines.slices.SliceSet`."""

    picks: tuple[tuple[TrainingCase, int], ...]

    @classmethod
    def of(cls, cases: Iterable[TrainingCase], wanted: Callable[[TrainingCase], np.ndarray]) -> Slices:
        """The slices that `wanted` (case to positions) asks for, case by case."""
        return cls(tuple((case, int(position)) for case in cases for position in wanted(case)))

    def __len__(self) -> int:
        return len(self.picks)

    def pictures(self, at: Sequence[int], size: int) -> Tensor:
        """(n, 1, size, size) float32 in [0, 1], centred on a black square."""
        return (
            torch.stack([_resized(case.images[position], size) for case, position in map(self.picks.__getitem__, at)])
            / 255
        )

    def brain(self, at: Sequence[int], size: int) -> Tensor:
        """(n, size, size) bool: pixels more than half inside the brain."""
        return torch.stack(
            [_resized(case.brain[position], size)[0] > 0.5 for case, position in map(self.picks.__getitem__, at)]
        )

    def features(self, at: Sequence[int]) -> Tensor:
        """(n, taps, gh, gw, width) float32 patch features of the frozen encoder."""
        return torch.from_numpy(
            np.stack([case.features[position] for case, position in map(self.picks.__getitem__, at)])
        ).float()

    def native(self, at: int) -> tuple[np.ndarray, np.ndarray]:
        """One slice as stored: uint8 (H, W) image, bool (H, W) brain."""
        case, position = self.picks[at]
        return case.images[position], case.brain[position]

    def mask(self, at: int) -> np.ndarray:
        """Tumour of one slice, bool (H, W)."""
        case, position = self.picks[at]
        return case.masks[position]


def tumour_free(case: TrainingCase) -> np.ndarray:
    """Positions of the slices without tumour that hold some brain."""
    return np.flatnonzero(~case.has_tumour & case.brain.any(axis=(1, 2)))


def to_native(maps: Tensor, height: int, width: int) -> np.ndarray:
    """Maps (n, S, S) of the square picture to (n, height, width) float32 of the slice."""
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = F.interpolate(maps.unsqueeze(1).float(), size=(side, side), mode="bilinear", align_corners=False)[:, 0]
    return square[:, top : top + height, left : left + width].clamp(0, 1).numpy()


def _resized(picture: np.ndarray, size: int) -> Tensor:
    square = pad_to_square(torch.from_numpy(picture.astype(np.float32))[None, None])
    return F.interpolate(square, size=(size, size), mode="bilinear", align_corners=False, antialias=True)[0]

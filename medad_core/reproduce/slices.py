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

from medad_core.data.window import cut_windows
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
        """(n, 1, size, size) float32 in [0, 1]: what the encoder sees of each slice."""
        return torch.stack([self._resized(number, "images", size) for number in at]) / 255

    def brain(self, at: Sequence[int], size: int) -> Tensor:
        """(n, size, size) bool: pixels more than half inside the brain."""
        return torch.stack([self._resized(number, "brain", size)[0] > 0.5 for number in at])

    def features(self, at: Sequence[int]) -> Tensor:
        """(n, taps, gh, gw, width) float32 patch features of the frozen encoder."""
        return torch.from_numpy(
            np.stack([case.features[position] for case, position in map(self.picks.__getitem__, at)])
        ).float()

    def _resized(self, at: int, kind: str, size: int) -> Tensor:
        case, position = self.picks[at]
        picture = case.seen(getattr(case, kind)[position : position + 1], position).astype(np.float32)
        square = torch.from_numpy(picture).unsqueeze(1)
        return F.interpolate(square, size=(size, size), mode="bilinear", align_corners=False, antialias=True)[0]

    def native(self, at: int) -> tuple[np.ndarray, np.ndarray]:
        """One slice as stored: uint8 (H, W) image, bool (H, W) brain."""
        case, position = self.picks[at]
        return case.images[position], case.brain[position]

    def to_native(self, at: int, square: Tensor) -> np.ndarray:
        """The map (S, S) of what the encoder sees of one slice to (H, W) float32 of the slice; 0 beside it."""
        case, position = self.picks[at]
        height, width = case.masks.shape[1:]
        top, left, side = case.windows[position].tolist()
        drawn = F.interpolate(square[None, None].float(), size=(side, side), mode="bilinear", align_corners=False)
        # The picture is a window of what its window shows.
        whole = max(height, width)
        place = np.array([[-top, -left, whole]])
        return cut_windows(drawn[0].clamp(0, 1).numpy(), place, whole)[0, :height, :width]

    def mask(self, at: int) -> np.ndarray:
        """Tumour of one slice, bool (H, W)."""
        case, position = self.picks[at]
        return case.masks[position]


def tumour_free(case: TrainingCase) -> np.ndarray:
    """Positions of the slices without tumour that hold some brain."""
    return np.flatnonzero(~case.has_tumour & case.brain.any(axis=(1, 2)))

"""What every baseline is: fitted on tumour-free slices, then it gives a score and a map of any slice.

One decision: maps are brought to [0, 1] as e / (e + q), where q is the 99.5th percentile of the errors of brain pixels
in tumour-free training slices. So 0.5 is "as large as the largest errors of normal brain" for all of them, and no test
slice has a say in it. PatchCore takes q from slices that it does not remember, because it makes no error on those it
does; the others take it from slices that they learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from medad_core.errors import MedadError
from medad_core.progress import ReportProgress

LIMIT_QUANTILE = 0.995
LIMIT_SLICES = 256  # so many slices, evenly spaced, give the limit of normal errors: memory stays fixed
SCORE_BATCH = 32


class SliceSet(Protocol):
    """Slices of many cases, at positions 0 to n-1."""

    def __len__(self) -> int:
        """Number of slices."""

    def pictures(self, at: Sequence[int], size: int) -> Tensor:
        """(n, 1, size, size) float32 in [0, 1]: what the encoder sees, the slice on a black square or its window."""

    def brain(self, at: Sequence[int], size: int) -> Tensor:
        """(n, size, size) bool, in the same frame."""

    def features(self, at: Sequence[int]) -> Tensor:
        """(n, taps, gh, gw, width) float32 patch features of the frozen encoder."""

    def native(self, at: int) -> tuple[np.ndarray, np.ndarray]:
        """One slice as stored: uint8 (H, W) image, bool (H, W) brain."""


@dataclass(frozen=True)
class Scored:
    """A batch of slices with scores (n,) float64, higher is more anomalous, and maps (n, S, S) float32 in [0, 1].

    A map is of what the encoder sees.
    """

    scores: np.ndarray
    maps: Tensor


class Detector(Protocol):
    """A baseline.

    `training_error`, after the fit, is the loss relative to that of the mean training picture. At 1 or more that
    picture would rebuild slices as well. It is None where nothing is rebuilt.
    """

    training_error: float | None

    def fit(self, normal: SliceSet, progress: ReportProgress = ...) -> None:
        """Learn from tumour-free slices; `progress` gets the steps done, and of how many.

        Raises MedadError where there are no slices.
        """

    def score(self, slices: SliceSet) -> Iterator[Scored]:
        """Every slice, in order, in batches."""


def batches(count: int, size: int) -> Iterator[range]:
    """Positions 0 to count-1 in runs of `size`."""
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def require(normal: SliceSet) -> None:
    """Raise MedadError where there is nothing to learn from."""
    if not len(normal):
        raise MedadError(
            "no tumour-free slices to train on; add cases with some, or widen train.first_slice..train.last_slice"
        )


def spread(count: int, most: int) -> list[int]:
    """At most `most` positions, evenly spaced over 0 to count-1."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist()


def normal_limit(errors: Iterator[Tensor]) -> float:
    """The 99.5th percentile of errors of brain pixels, batches of (n,); above 0."""
    pixels = torch.cat(list(errors)).double().numpy()
    return max(float(np.quantile(pixels, LIMIT_QUANTILE)), 1e-12)


def squashed(errors: Tensor, limit: float) -> Tensor:
    """Errors >= 0 of any unit to [0, 1); `limit` becomes 0.5."""
    return errors / (errors + limit)


def smoothed(errors: Tensor, sigma_at_224: float = 4.0) -> Tensor:
    """Errors (n, S, S) after a Gaussian of 4 pixels at 224, as in PatchCore."""
    sigma = sigma_at_224 * errors.shape[-1] / 224
    reach = max(1, round(3 * sigma))
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=errors.device) / sigma) ** 2)
    bell = (bell / bell.sum()).view(1, 1, 1, -1)
    rows = torch.nn.functional.conv2d(errors.unsqueeze(1), bell, padding=(0, reach))
    return torch.nn.functional.conv2d(rows, bell.transpose(2, 3), padding=(reach, 0))[:, 0]


def mean_within(errors: Tensor, brain: Tensor) -> np.ndarray:
    """Means (n,) float64 of errors (n, S, S) over each brain (n, S, S).

    A black border only measures the size of the head.
    """
    inside = brain.flatten(1).double()
    return ((errors.flatten(1).double() * inside).sum(1) / inside.sum(1).clamp(min=1)).cpu().numpy()

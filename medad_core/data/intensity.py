"""From stored intensities to 0..255, by landmarks of the whole brain and never of one slice.

One decision: landmarks are percentiles over the brain voxels of a fixed reference range of slices, so a pixel's value
does not depend on which slices are screened. Both scalings are unchanged under x -> a*x + b (a > 0): a header's slope
and z-scoring change nothing. So voxels keep their own dtype until the last step. After the percentile normalisation of
Nyul and Udupa (1999), reduced to its end points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from medad_core.config import ScalingSettings

# Outside the brain a skull-stripped volume is one constant; with less than this share of the border it is not stripped.
_LEAST_BORDER_SHARE = 0.25
_FEWEST_STEPS = 64  # of float32 from black to white: rounding then moves a pixel by 2 grey levels of 255
_LEAST_CONTRAST = 255 / float(np.finfo(np.float32).max)  # below it the factor of the scaling is infinite


@dataclass(frozen=True)
class Landmarks:
    """Stored intensities that become 0 and 255."""

    black: float
    white: float

    @property
    def are_resolved(self) -> bool:
        """Whether float32, in which pictures are scaled, has enough steps between them, and the factor is in its range.

        Stored values of 64 bits may be too far from 0, or too small.
        """
        ends = np.array([self.black, self.white], np.float32)
        contrast = self.white - self.black
        return bool(contrast >= _LEAST_CONTRAST and contrast >= _FEWEST_STEPS * np.spacing(np.abs(ends).max()))


def find_background(block: np.ndarray) -> float | None:
    """The constant outside the brain: the commonest value on the in-plane border of `block` (N, H, W).

    None where no value takes a quarter of the border.
    """
    edges = (block[:, 0], block[:, -1], block[:, :, 0], block[:, :, -1])
    border = np.concatenate([edge.ravel() for edge in edges])
    values, counts = np.unique(border, return_counts=True)
    best = counts.argmax()
    return values[best].item() if counts[best] >= _LEAST_BORDER_SHARE * border.size else None


def find_landmarks(brain_values: np.ndarray, settings: ScalingSettings) -> Landmarks | None:
    """Landmarks of the 1-D stored values inside the brain; None where they have no contrast (or are empty)."""
    if brain_values.size == 0:
        return None
    if settings.kind == "median":
        black, middle = percentiles(brain_values, (settings.low, 50.0))
        white = black + settings.k * (middle - black)
    else:
        black, white = percentiles(brain_values, (settings.low, settings.high))
    return Landmarks(black, white) if white > black else None


def percentiles(values: np.ndarray, percents: Sequence[float]) -> list[float]:
    """What `np.percentile` returns for values (n,), to the last bit; those of at most 16 bits are counted, not sorted.

    NumPy's own differ where two neighbours in order are further apart than the greatest 16-bit number: it overflows.
    """
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2:
        found: list[float] = np.percentile(values, percents).tolist()
        return found
    values = values.astype(values.dtype.newbyteorder("="), copy=False)  # they are counted by their bytes
    limits = np.iinfo(values.dtype)
    counts = np.bincount(values.view(f"u{values.dtype.itemsize}"), minlength=2**limits.bits)
    up_to = np.roll(counts, limits.min).cumsum()  # as unsigned, the negative values came last
    place = (len(values) - 1) * np.true_divide(percents, 100)
    rank = np.floor(place).astype(int)
    low, high = (up_to.searchsorted(at, "right") + limits.min for at in (rank, np.minimum(rank + 1, len(values) - 1)))
    share = place - rank
    return np.where(share < 0.5, low + (high - low) * share, high - (high - low) * (1 - share)).tolist()


def to_uint8(block: np.ndarray, brain: np.ndarray, landmarks: Landmarks) -> np.ndarray:
    """Scale `block` (N, H, W, any dtype) to uint8: black -> 0, white -> 255, clipped and rounded; 0 outside `brain`."""
    image = np.zeros(block.shape, np.uint8)
    box = box_of(brain)
    np.multiply(_scaled(block[box], landmarks), brain[box], out=image[box])
    return image


def box_of(brain: np.ndarray) -> tuple[slice, slice, slice]:
    """The smallest part of (N, H, W), of all slices, that holds every brain voxel: less than a half of most volumes."""
    anywhere = brain.any(axis=0)
    return slice(None), _extent(anywhere.any(axis=1)), _extent(anywhere.any(axis=0))


def _extent(flags: np.ndarray) -> slice:
    """From the first to the last True of (n,); nothing where there is none."""
    places = np.flatnonzero(flags)
    return slice(places[0], places[-1] + 1) if len(places) else slice(0, 0)


def _scaled(values: np.ndarray, landmarks: Landmarks) -> np.ndarray:
    factor = 255.0 / (landmarks.white - landmarks.black)
    out = (values.astype(np.float32) - np.float32(landmarks.black)) * np.float32(factor)
    np.clip(out, 0.0, 255.0, out=out)
    return np.rint(out, out=out).astype(np.uint8)

"""Pictures of 1 mm pixels from pictures of others, with areas preserved.

One decision: a pixel of the result is what lies under it, weighted by area. Pictures are resampled after they were
scaled to uint8. Their landmarks are percentiles of stored voxels, so the brightness of a picture does not depend on the
grid that it is brought to, and one voxel that is far too bright is clipped before it can brighten its neighbours.
The background is no tissue: only the brain under a pixel is averaged, so that a brain has no dark rim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from medad_core.data.grid import is_one_mm

_ROUNDING = 1e-6  # of shares of a pixel


@dataclass(frozen=True)
class _Axis:
    """`weights` (out, in): the share of each new pixel that each old one covers. `centre` (out,): which one it is at
    the new pixel's centre, the lower of two.
    """

    weights: sparse.csr_array
    centre: np.ndarray
    spacing_mm: float


def resample_plane(
    images: np.ndarray, brain: np.ndarray, masks: np.ndarray | None, spacing_mm: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, tuple[float, float, float]]:
    """Pictures (N, H, W) uint8, brain and masks bool, and their (row, column, slice) spacing, on pixels of 1 mm.

    An axis that has 1 mm (`grid.is_one_mm`) stays as it is; where both have, the arguments are returned. The new
    pictures have the old centre, and are as long as the old ones or up to 1 mm longer. A pixel belongs to brain or mask
    where at least half of its area does. Exactly half is decided by the old pixel at its centre: taking all or none
    would make every lesion larger or smaller, where 2 x 2 pixels become one.
    """
    rows = _axis(images.shape[1], spacing_mm[0])
    columns = _axis(images.shape[2], spacing_mm[1])
    if rows is None and columns is None:
        return images, brain, masks, spacing_mm
    rows = rows or _unchanged(images.shape[1], spacing_mm[0])
    columns = columns or _unchanged(images.shape[2], spacing_mm[1])
    new_brain = _majority(brain, rows, columns)
    new_images = np.stack(
        [
            _mean(image, inside, kept, rows, columns)
            for image, inside, kept in zip(images, brain, new_brain, strict=True)
        ]
    )
    new_masks = None if masks is None else _majority(masks, rows, columns)
    return new_images, new_brain, new_masks, (rows.spacing_mm, columns.spacing_mm, spacing_mm[2])


def _axis(size: int, edge: float) -> _Axis | None:
    """The way from `size` pixels of `edge` mm to pixels of 1 mm; None where they have it."""
    if is_one_mm(edge):
        return None
    length = size * edge
    count = max(1, math.ceil(length - 0.01))  # a sliver of a hundredth is the header's rounding
    low_new = np.arange(count) - (count - length) / 2
    low_old = np.arange(size) * edge
    shared = np.minimum(low_new[:, None] + 1, low_old + edge) - np.maximum(low_new[:, None], low_old)
    centre = np.floor((low_new + 0.5) / edge - _ROUNDING).astype(int).clip(0, size - 1)
    return _Axis(sparse.csr_array(shared.clip(0, None)), centre, 1.0)


def _unchanged(size: int, edge: float) -> _Axis:
    return _Axis(sparse.csr_array(sparse.eye_array(size)), np.arange(size), edge)


def _cover(plane: np.ndarray, rows: _Axis, columns: _Axis) -> np.ndarray:
    """Sum of the values (H, W) under each new pixel, weighted by the share of its area, as float64."""
    return (columns.weights @ (rows.weights @ plane.astype(np.float64)).T).T


def _majority(flags: np.ndarray, rows: _Axis, columns: _Axis) -> np.ndarray:
    """Bool (N, H', W'): where at least half of the new pixel is True."""
    out = np.empty((len(flags), len(rows.centre), len(columns.centre)), bool)
    for number, plane in enumerate(flags):
        share = _cover(plane, rows, columns)
        at_centre = plane[np.ix_(rows.centre, columns.centre)]
        out[number] = (share > 0.5 + _ROUNDING) | (at_centre & (share > 0.5 - _ROUNDING))
    return out


def _mean(image: np.ndarray, brain: np.ndarray, kept: np.ndarray, rows: _Axis, columns: _Axis) -> np.ndarray:
    """uint8 (H', W'): the mean of the brain under each new pixel that is `kept`, 0 elsewhere."""
    share = _cover(brain, rows, columns)
    total = _cover(np.where(brain, image, 0), rows, columns)
    mean = np.divide(total, share, out=np.zeros_like(total), where=kept)
    return np.rint(mean).astype(np.uint8)

"""Maps the converter learns from: real ones, moved and mirrored, and drawn ones.

One decision: the converter sees only maps, so every real map can be shifted and mirrored together with its mask, and
any number of lesion maps can be drawn; neither needs an image (medad_core/README.md, "The converter").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medad_core.data.location import cell_of, square_share

DRAWN_SIDE = 48


@dataclass(frozen=True)
class LabelledMaps:
    """Maps with the places of their tumours.

    `grids` (N, taps, gh, gw) float16; `centroids` (N, 2) of the tumour, row and column as shares of the square picture,
    NaN where there is none.
    """

    grids: np.ndarray
    centroids: np.ndarray

    @property
    def has_tumour(self) -> np.ndarray:
        """(N,) bool."""
        return ~np.isnan(self.centroids[:, 0])

    @staticmethod
    def join(parts: Sequence[LabelledMaps]) -> LabelledMaps:
        """All maps of `parts`, in order."""
        grids = np.concatenate([part.grids for part in parts])
        centroids = np.concatenate([part.centroids for part in parts])
        return LabelledMaps(grids, centroids)


def label_maps(grids: np.ndarray, masks: np.ndarray) -> LabelledMaps:
    """Pair the grids of slices (N, taps, gh, gw) with the centroids of their masks (N, H, W) bool."""
    centroids = np.full((len(masks), 2), np.nan)
    for index in np.flatnonzero(masks.any(axis=(1, 2))):
        centroids[index] = square_share(*(np.argwhere(masks[index]).mean(axis=0) + 0.5), *masks.shape[1:])
    return LabelledMaps(grids, centroids)


def cell_at(centroid: np.ndarray) -> str | None:
    """The answer's cell for a centroid (2,), None for NaN."""
    return None if np.isnan(centroid[0]) else cell_of(centroid[0], centroid[1], 1, 1)


def move(grid: np.ndarray, centroid: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mirror and shift one map (taps, gh, gw) by whole patches, its centroid (2,) with it.

    Patches that come in repeat the border.

    Returns the grid float32 and the centroid.
    """
    grid = grid.astype(np.float32)
    centroid = centroid.copy()
    for axis in (0, 1):
        if rng.random() < 0.5:
            grid = np.flip(grid, axis + 1)
            centroid[axis] = 1 - centroid[axis]
        side = grid.shape[axis + 1]
        shift = int(rng.integers(-side // 4, side // 4 + 1))
        if np.isnan(centroid[axis]) or 0.08 < centroid[axis] + shift / side < 0.92:
            grid = np.take(grid, np.clip(np.arange(side) - shift, 0, side - 1), axis=axis + 1)
            centroid[axis] += shift / side
    return grid, centroid


def draw(like: np.ndarray, tumour: bool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw one map on the background of a real tumour-free grid `like` (taps, gh, gw), with a lesion where asked.

    A lesion is one to three overlapping ellipses with a ragged edge; its logits rise to between 2 and 20 above zero in
    every tap. A map without lesion may keep a faint bump below zero. Returns the grid float32, and the lesion's
    centroid (2,) as in `LabelledMaps`.
    """
    taps, rows, columns = like.shape
    nowhere = np.full(2, np.nan)
    grid = move(like, nowhere, rng)[0]
    shape = _ragged_ellipses(rng) if tumour or rng.random() < 0.3 else np.zeros((DRAWN_SIDE, DRAWN_SIDE), bool)
    if not shape.any():
        return grid, nowhere
    cover = ndimage.zoom(
        ndimage.gaussian_filter(shape.astype(np.float32), 1.0),
        (rows / DRAWN_SIDE, columns / DRAWN_SIDE),
        order=1,
        grid_mode=True,
        mode="nearest",
    )
    cover = cover / max(cover.max(), 1e-6)
    height = rng.uniform(2, 20) if tumour else rng.uniform(-8, -2)
    peak = height * rng.uniform(0.6, 1.2, size=(taps, 1, 1)) if tumour else height
    grid = np.maximum(grid, grid + cover * (peak - grid)) + rng.normal(0, 0.7, grid.shape)
    centroid = (np.argwhere(shape).mean(axis=0) + 0.5) / DRAWN_SIDE if tumour else nowhere
    return grid.astype(np.float32), centroid


def _ragged_ellipses(rng: np.random.Generator) -> np.ndarray:
    """The shape of a lesion, (48, 48) bool."""
    y, x = np.mgrid[:DRAWN_SIDE, :DRAWN_SIDE] / DRAWN_SIDE
    centre = rng.uniform(0.12, 0.88, 2)
    shape = np.zeros(y.shape, bool)
    edge = ndimage.gaussian_filter(rng.normal(size=y.shape), 2.5)
    edge *= 0.35 / max(edge.std(), 1e-6)
    for _ in range(rng.integers(1, 4)):
        at = centre + rng.normal(0, 0.05, 2)
        radii = rng.uniform(0.03, 0.2, 2)
        angle = rng.uniform(0, np.pi)
        v = y - at[0]
        u = x - at[1]
        along = u * np.cos(angle) + v * np.sin(angle)
        across = v * np.cos(angle) - u * np.sin(angle)
        shape |= (along / radii[0]) ** 2 + (across / radii[1]) ** 2 < 1 + edge
    return shape

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
WITHIN = (0.08, 0.92)  # where in the picture a centroid is moved to, or drawn
ATTEMPTS = 20  # shapes that are drawn until one lies there


@dataclass(frozen=True)
class LabelledMaps:
    """Maps with the places of their tumours.

    `grids` (N, taps, gh, gw) float16; `frames` (N, 3) are where they lie in the square around the picture: top, left
    and side as shares of it; `centroids` (N, 2) of the tumour, row and column as shares of that square, NaN where there
    is none.
    """

    grids: np.ndarray
    frames: np.ndarray
    centroids: np.ndarray

    @property
    def has_tumour(self) -> np.ndarray:
        """(N,) bool."""
        return ~np.isnan(self.centroids[:, 0])

    @staticmethod
    def join(parts: Sequence[LabelledMaps]) -> LabelledMaps:
        """All maps of `parts`, in order."""
        grids, frames, centroids = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("grids", "frames", "centroids")
        )
        return LabelledMaps(grids, frames, centroids)

    def take(self, picks: np.ndarray) -> LabelledMaps:
        """The maps of these numbers."""
        return LabelledMaps(self.grids[picks], self.frames[picks], self.centroids[picks])

    def example(self, number: int) -> Example:
        """One of the maps."""
        return Example(self.grids[number].astype(np.float32), self.frames[number], self.centroids[number])


@dataclass(frozen=True)
class Example:
    """One map to learn from: grid (taps, gh, gw) float32, frame (3,) and centroid (2,) as in `LabelledMaps`."""

    grid: np.ndarray
    frame: np.ndarray
    centroid: np.ndarray


def label_maps(grids: np.ndarray, frames: np.ndarray, masks: np.ndarray) -> LabelledMaps:
    """Pair the grids of slices (N, taps, gh, gw) and their frames with the centroids of their masks (N, H, W) bool."""
    centroids = np.full((len(masks), 2), np.nan)
    for index in np.flatnonzero(masks.any(axis=(1, 2))):
        centroids[index] = square_share(*(np.argwhere(masks[index]).mean(axis=0) + 0.5), *masks.shape[1:])
    return LabelledMaps(grids, frames, centroids)


def cell_at(centroid: np.ndarray) -> str | None:
    """The answer's cell for a centroid (2,), None for NaN."""
    return None if np.isnan(centroid[0]) else cell_of(centroid[0], centroid[1], 1, 1)


def move(example: Example, rng: np.random.Generator) -> Example:
    """Mirror a map, and shift it by up to a quarter of its frame; frame and centroid go with it."""
    grid = example.grid
    frame = example.frame.astype(np.float32)
    centroid = example.centroid.copy()
    for axis in (0, 1):
        if rng.random() < 0.5:
            grid = np.flip(grid, axis + 1)
            frame[axis] = 1 - frame[axis] - frame[2]
            centroid[axis] = 1 - centroid[axis]
        shift = rng.uniform(-0.25, 0.25) * frame[2]
        if np.isnan(centroid[axis]) or WITHIN[0] < centroid[axis] + shift < WITHIN[1]:
            frame[axis] += shift
            centroid[axis] += shift
    return Example(grid, frame, centroid)


def draw(like: Example, tumour: bool, rng: np.random.Generator) -> Example:
    """Draw a lesion, where asked, on the map of a tumour-free slice `like`, and move both.

    A lesion is one to three overlapping ellipses with a ragged edge; its logits rise to between 2 and 20 above zero in
    every tap. A map without lesion may keep a faint bump below zero.
    """
    taps, rows, columns = like.grid.shape
    shape = np.zeros((DRAWN_SIDE, DRAWN_SIDE), bool)
    centroid = like.centroid
    if tumour:
        shape, centroid = _lesion(like.frame, rng)
    elif rng.random() < 0.3:
        shape = _ragged_ellipses(rng)
    if not shape.any():
        return move(like, rng)
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
    grid = np.maximum(like.grid, like.grid + cover * (peak - like.grid)) + rng.normal(0, 0.7, like.grid.shape)
    return move(Example(grid.astype(np.float32), like.frame, centroid), rng)


def _lesion(frame: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The shape of a lesion in its frame, and its centroid (2,), which lies well within the picture.

    There is none, an empty shape and NaN, in a frame that lies at the picture's edge or beside it: that of a slice with
    a few voxels of brain in a corner.
    """
    for _ in range(ATTEMPTS):
        shape = _ragged_ellipses(rng)
        if shape.any():
            centroid = frame[:2] + (np.argwhere(shape).mean(axis=0) + 0.5) / DRAWN_SIDE * frame[2]
            if ((centroid > WITHIN[0]) & (centroid < WITHIN[1])).all():
                return shape, centroid
    return np.zeros((DRAWN_SIDE, DRAWN_SIDE), bool), np.full(2, np.nan)


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

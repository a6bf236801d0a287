"""Maps the converter learns from: real ones, moved and mirrored, and drawn ones.

One decision: the converter sees only maps, so every real map can be shifted and mirrored together with its mask, and
any number of lesion maps can be drawn; neither needs an image (medad_core/README.md, "The converter").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from medad_core.data.findings import TumourFinding, find, measure_parts, spread_of
from medad_core.training.features import TrainingCase

DRAWN_SIDE = 48
WITHIN = (0.08, 0.92)  # where in the picture a centroid is moved to, or drawn
ATTEMPTS = 20  # shapes that are drawn until one lies there
DRAWN_MM = (4.0, 80.0)  # lengths of drawn lesions
BLUR = 0.7  # of a drawn lesion's edge, in patches
SEVERAL = 0.3  # share of drawn maps with two lesions, which may touch


@dataclass(frozen=True)
class Example:
    """One map to learn from, and what its mask says.

    `grid` (taps, gh, gw) float32. `frame` (3,) is where it lies in the square around the picture: top, left and side as
    shares of it. `square_mm` is the side of that square. `finding` is None where there is no tumour. `cover` (48, 48)
    float32 is the tumour's share of each of 48 × 48 parts of the frame.
    """

    grid: np.ndarray
    frame: np.ndarray
    square_mm: float
    finding: TumourFinding | None
    cover: np.ndarray


@dataclass(frozen=True)
class LabelledMaps:
    """N maps with what their masks say: `grids` (N, taps, gh, gw) float16, all else as in `Example`, N of each."""

    grids: np.ndarray
    frames: np.ndarray
    square_mm: np.ndarray
    findings: tuple[TumourFinding | None, ...]
    covers: np.ndarray

    @property
    def has_tumour(self) -> np.ndarray:
        """(N,) bool."""
        return np.array([finding is not None for finding in self.findings], bool)

    @staticmethod
    def join(parts: Sequence[LabelledMaps]) -> LabelledMaps:
        """All maps of `parts`, in order."""
        return LabelledMaps(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("grids", "frames", "square_mm")),
            tuple(finding for part in parts for finding in part.findings),
            np.concatenate([part.covers for part in parts]),
        )

    def take(self, picks: np.ndarray) -> LabelledMaps:
        """The maps of these numbers."""
        findings = tuple(self.findings[pick] for pick in picks)
        return LabelledMaps(self.grids[picks], self.frames[picks], self.square_mm[picks], findings, self.covers[picks])

    def example(self, number: int) -> Example:
        """One of the maps."""
        return Example(
            self.grids[number].astype(np.float32),
            self.frames[number],
            float(self.square_mm[number]),
            self.findings[number],
            self.covers[number].astype(np.float32),
        )


def label_maps(grids: np.ndarray, case: TrainingCase) -> LabelledMaps:
    """Pair the grids (N, taps, gh, gw) of a case with what its masks say."""
    masks = zip(case.masks, case.brain, strict=True)
    findings = tuple(find(mask, brain, case.pixel_mm2) for mask, brain in masks)
    square_mm = max(case.masks.shape[1:]) * np.sqrt(case.pixel_mm2)
    return LabelledMaps(grids, case.frames, np.full(len(grids), square_mm), findings, case.cover(DRAWN_SIDE))


def move(example: Example, rng: np.random.Generator) -> Example:
    """Mirror a map, and shift it by up to a quarter of its frame; frame and finding go with it."""
    grid = example.grid
    cover = example.cover
    frame = example.frame.astype(np.float32)
    finding = example.finding
    centroid = np.full(2, np.nan) if finding is None else finding.centroid.copy()
    right = None if finding is None else finding.right
    for axis in (0, 1):
        if rng.random() < 0.5:
            grid = np.flip(grid, axis + 1)
            cover = np.flip(cover, axis)
            frame[axis] = 1 - frame[axis] - frame[2]
            centroid[axis] = 1 - centroid[axis]
            if axis == 1 and right is not None:
                right = 1 - right
        shift = rng.uniform(-0.25, 0.25) * frame[2]
        if np.isnan(centroid[axis]) or WITHIN[0] < centroid[axis] + shift < WITHIN[1]:
            frame[axis] += shift
            centroid[axis] += shift
    if finding is not None:
        finding = replace(finding, centroid=centroid, right=right, spread=_spread(cover, frame))
    return Example(grid, frame, example.square_mm, finding, cover)


def draw(like: Example, tumour: bool, rng: np.random.Generator) -> Example:
    """Draw a lesion, where asked, on the map of a tumour-free slice `like`, and move both.

    A lesion is one to three overlapping ellipses with a ragged edge, 4 to 80 mm long; three maps in ten have two, which
    may touch. Its logits rise to between 2 and 20 above zero in every tap. A map without lesion may keep a faint bump
    below zero.
    """
    taps, rows, columns = like.grid.shape
    shape = np.zeros((DRAWN_SIDE, DRAWN_SIDE), bool)
    finding = like.finding
    if tumour:
        shape, finding = _lesion(like, rng)
    elif rng.random() < 0.3:
        shape = _ragged_ellipses(like, rng)
    if not shape.any():
        return move(like, rng)
    # A lesion smaller than a patch raises the patches around it too.
    bump = ndimage.zoom(
        ndimage.gaussian_filter(shape.astype(np.float32), BLUR * DRAWN_SIDE / rows),
        (rows / DRAWN_SIDE, columns / DRAWN_SIDE),
        order=1,
        grid_mode=True,
        mode="nearest",
    )
    bump = bump / max(bump.max(), 1e-6)
    height = rng.uniform(2, 20) if tumour else rng.uniform(-8, -2)
    peak = height * rng.uniform(0.6, 1.2, size=(taps, 1, 1)) if tumour else height
    grid = np.maximum(like.grid, like.grid + bump * (peak - like.grid)) + rng.normal(0, 0.7, like.grid.shape)
    cover = shape.astype(np.float32) if finding is not None else np.zeros_like(like.cover)
    return move(Example(grid.astype(np.float32), like.frame, like.square_mm, finding, cover), rng)


def _lesion(like: Example, rng: np.random.Generator) -> tuple[np.ndarray, TumourFinding | None]:
    """The shape of a lesion in the frame of a map, and what it says; its centroid lies well within the picture.

    There is none, an empty shape and None, in a frame that lies at the picture's edge or beside it: that of a slice
    with a few voxels of brain in a corner.
    """
    for _ in range(ATTEMPTS):
        shape = _ragged_ellipses(like, rng)
        if rng.random() < SEVERAL:
            shape |= _ragged_ellipses(like, rng)
        if shape.any():
            finding = _drawn_finding(shape, like)
            if ((finding.centroid > WITHIN[0]) & (finding.centroid < WITHIN[1])).all():
                return shape, finding
    return np.zeros((DRAWN_SIDE, DRAWN_SIDE), bool), None


def _drawn_finding(shape: np.ndarray, like: Example) -> TumourFinding:
    """What a drawn shape says; the middle of its frame stands for that of the brain."""
    places = np.argwhere(shape)
    frame = like.frame
    centroid = frame[:2] + (places.mean(axis=0) + 0.5) / DRAWN_SIDE * frame[2]
    right = float((places[:, 1] < DRAWN_SIDE / 2).mean())
    pixel_mm = like.square_mm * float(frame[2]) / DRAWN_SIDE
    longest_mm, parts = measure_parts(shape, pixel_mm**2)
    return TumourFinding(centroid, right, longest_mm, parts, _spread(shape, frame))


def _spread(cover: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """`TumourFinding.spread` of what covers (48, 48) parts of a frame (3,)."""
    places = np.argwhere(cover > 0)
    shares = frame[:2] + (places + 0.5) / len(cover) * frame[2]
    return spread_of(shares, cover[cover > 0])


def _ragged_ellipses(like: Example, rng: np.random.Generator) -> np.ndarray:
    """The shape of a lesion, (48, 48) bool, in the frame of a map; lengths are uniform in their logarithm."""
    y, x = np.mgrid[:DRAWN_SIDE, :DRAWN_SIDE] / DRAWN_SIDE
    length = np.exp(rng.uniform(*np.log(DRAWN_MM))) / (like.square_mm * like.frame[2])
    centre = rng.uniform(0.12, 0.88, 2)
    # The middle of a part, so that the smallest lesion has one.
    centre = (np.floor(centre * DRAWN_SIDE) + 0.5) / DRAWN_SIDE if length < 2 / DRAWN_SIDE else centre
    shape = np.zeros(y.shape, bool)
    edge = ndimage.gaussian_filter(rng.normal(size=y.shape), 2.5)
    edge *= 0.35 / max(edge.std(), 1e-6)
    for _ in range(rng.integers(1, 4)):
        at = centre + rng.normal(0, 0.12, 2) * length
        radii = length * rng.uniform(0.2, 0.5, 2)
        angle = rng.uniform(0, np.pi)
        v = y + 0.5 / DRAWN_SIDE - at[0]
        u = x + 0.5 / DRAWN_SIDE - at[1]
        along = u * np.cos(angle) + v * np.sin(angle)
        across = v * np.cos(angle) - u * np.sin(angle)
        shape |= (along / radii[0]) ** 2 + (across / radii[1]) ** 2 < 1 + edge
    if not shape.any():
        row, column = (centre * DRAWN_SIDE).astype(int)
        shape[row, column] = True
    return shape

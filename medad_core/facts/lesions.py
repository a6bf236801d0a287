"""Lesions of a case in three dimensions: connected parts of a mask, or of a map above its threshold.

One decision: a lesion is measured as radiologists measure it, in the patient and in mm: volume, the longest diameter in
an axial slice with its perpendicular in the same slice (as in RANO), and the centroid in RAS coordinates. Where the
range of slices ends within a lesion, it is marked as cut, and its volume and length are at least these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medad_core.data.findings import longest_diameter, right_share, side_of
from medad_core.data.place import Place

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
_TOUCHING = np.ones((3, 3, 3), bool)  # corners included


@dataclass(frozen=True)
class Grid:
    """Where the pictures of a case lie.

    `spacing_mm` is that of (row, column, slice), as everywhere. `first_slice` is the slice index of the first picture.
    `place` is None where nobody noted it.
    """

    spacing_mm: tuple[float, float, float]
    first_slice: int
    place: Place | None

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return float(np.prod(self.spacing_mm)) / 1000

    def goes_on(self, slice_index: int, step: int) -> bool:
        """Whether the volume has a slice `step` beyond this one; where nobody noted its size, it may have."""
        beyond = slice_index + step
        return beyond >= 0 and (self.place is None or beyond < self.place.slices)


@dataclass(frozen=True)
class Lesion:
    """One lesion.

    Slices are slice indices. `diameter_mm` is the longest one of a connected part of an axial slice, `perpendicular_mm`
    the longest one across it, both in slice `widest_slice`. `centroid` is slice index, row and column with fractions,
    `centroid_ras` in mm. `right` is the share of its voxels on the patient's right. `is_cut` says that the range of
    slices ends within it.
    """

    volume_ml: float
    first_slice: int
    last_slice: int
    diameter_mm: float
    perpendicular_mm: float
    widest_slice: int
    centroid: tuple[float, float, float]
    centroid_ras: tuple[float, float, float] | None
    right: float
    is_cut: bool

    @property
    def side(self) -> str:
        """left, right or both, in the patient's terms."""
        return side_of(self.right)

    @property
    def crosses_midline(self) -> bool:
        """Whether it has voxels on both sides."""
        return 0 < self.right < 1


def label_lesions(mask: BoolArray, grid: Grid, smallest_ml: float) -> npt.NDArray[np.int32]:
    """Lesions of a mask (N, H, W) of at least `smallest_ml`, numbered from 1 by falling volume; 0 elsewhere."""
    labels, count = ndimage.label(mask, _TOUCHING)
    voxels = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    kept = np.flatnonzero(voxels * grid.voxel_ml >= smallest_ml - 1e-12)
    order = kept[np.argsort(-voxels[kept], kind="stable")]
    numbers = np.zeros(count + 1, np.int32)
    numbers[1 + order] = np.arange(1, len(order) + 1)
    return numbers[labels]


def measure_lesions(labels: npt.NDArray[np.int32], middle: FloatArray, grid: Grid) -> Iterator[tuple[Lesion, IntArray]]:
    """Each lesion of `label_lesions` with its voxels (n, 3), counted from the first picture.

    `middle` (N,) is the brain's middle column in each slice, in pixels.
    """
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        own = labels[box] == number
        voxels = np.argwhere(own) + np.array([part.start for part in box])
        yield _measure(own, voxels, box, len(labels), middle, grid), voxels


def _measure(
    own: BoolArray, voxels: IntArray, box: tuple[slice, ...], slices: int, middle: FloatArray, grid: Grid
) -> Lesion:
    centroid = voxels.mean(axis=0) + np.array([grid.first_slice, 0, 0])
    diameter, perpendicular, widest = _widest(own, grid)
    first, last = (grid.first_slice + at for at in (box[0].start, box[0].stop - 1))
    ends = grid.first_slice, grid.first_slice + slices - 1
    return Lesion(
        volume_ml=len(voxels) * grid.voxel_ml,
        first_slice=first,
        last_slice=last,
        diameter_mm=diameter,
        perpendicular_mm=perpendicular,
        widest_slice=first + widest,
        centroid=tuple(centroid.tolist()),
        centroid_ras=None if grid.place is None else tuple((grid.place.matrix @ [*centroid, 1])[:3].tolist()),
        right=right_share(voxels[:, 2], middle[voxels[:, 0]]),
        is_cut=(first == ends[0] and grid.goes_on(first, -1)) or (last == ends[1] and grid.goes_on(last, 1)),
    )


def _widest(own: BoolArray, grid: Grid) -> tuple[float, float, int]:
    """Longest axial diameter, its perpendicular, and the number of their slice in `own` (n, h, w)."""
    pixel = np.array(grid.spacing_mm[:2])
    best = (0.0, 0.0, 0)
    for number, plane in enumerate(own):
        parts, count = ndimage.label(plane, _TOUCHING[0])  # what meets in another slice only has no diameter here
        for part in range(1, count + 1):
            length, direction = longest_diameter(parts == part, pixel)
            if length > best[0]:
                best = (length, _across(parts == part, direction, pixel), number)
    return best


def _across(plane: BoolArray, direction: FloatArray, pixel: FloatArray) -> float:
    """The longest chord in mm at a right angle to `direction`, to about a pixel.

    It is taken in strips of a pixel's width across the plane, between the outermost pixels of each.
    """
    places = (np.argwhere(plane) + 0.5) * pixel
    along = places @ direction
    across = places @ np.array([-direction[1], direction[0]])
    width = float(pixel.mean())
    strip = np.round((along - along.min()) / width).astype(int)
    count = int(strip.max()) + 1
    high = np.full(count, -np.inf)
    low = np.full(count, np.inf)
    np.maximum.at(high, strip, across)
    np.minimum.at(low, strip, across)
    return float((high - low)[np.isfinite(high)].max()) + width

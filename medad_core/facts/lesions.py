"""Lesions of a case in three dimensions: connected parts of a mask, or of a map above its threshold.

One decision: a lesion is measured as radiologists measure it, in the patient and in mm: volume, the longest diameter in
an axial slice with its perpendicular in the same slice (as in RANO), and the centroid in RAS coordinates. Where the
range of slices ends within a lesion, it is marked as cut, and its volume and length are at least these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import ConvexHull

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
_TOUCHING = np.ones((3, 3, 3), bool)  # corners included
_CORNERS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
ONE_SIDED = 0.9  # with a larger share on one side a lesion is that side's


@dataclass(frozen=True)
class Grid:
    """Where the pictures of a case lie.

    `spacing_mm` is that of (slice, row, column). `to_ras` (4, 4) brings the index of a voxel, (slice, row, column), to
    RAS+ coordinates in mm; None where the file is not there any more. `first_slice` is the slice index of the first
    picture; `cut_below` and `cut_above` say whether the volume goes on beyond the first and last one.
    """

    spacing_mm: tuple[float, float, float]
    to_ras: FloatArray | None
    first_slice: int
    cut_below: bool
    cut_above: bool

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return float(np.prod(self.spacing_mm)) / 1000


@dataclass(frozen=True)
class Lesion:
    """One lesion.

    Slices are slice indices. `diameter_mm` is the longest one in an axial slice, `perpendicular_mm` the longest one
    across it, both in slice `widest_slice`. `centroid` is (slice, row, column) as an index with fractions,
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
        if self.right >= ONE_SIDED:
            return "right"
        return "left" if self.right <= 1 - ONE_SIDED else "both"

    @property
    def crosses_midline(self) -> bool:
        """Whether it has voxels on both sides."""
        return 0 < self.right < 1


def label_lesions(mask: BoolArray, grid: Grid, smallest_ml: float) -> tuple[npt.NDArray[np.int32], int]:
    """Lesions of a mask (N, H, W) of at least `smallest_ml`, numbered from 1 by falling volume, and their number."""
    labels, count = ndimage.label(mask, _TOUCHING)
    voxels = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    kept = np.flatnonzero(voxels * grid.voxel_ml >= smallest_ml - 1e-12)
    order = kept[np.argsort(-voxels[kept], kind="stable")]
    numbers = np.zeros(count + 1, np.int32)
    numbers[1 + order] = np.arange(1, len(order) + 1)
    return numbers[labels], len(order)


def measure_lesions(labels: npt.NDArray[np.int32], count: int, middle: FloatArray, grid: Grid) -> list[Lesion]:
    """The lesions of `label_lesions`. `middle` (N,) is the brain's middle column in each slice, in pixels."""
    return [_measure(labels, number, box, middle, grid) for number, box in enumerate(ndimage.find_objects(labels), 1)]


def _measure(
    labels: npt.NDArray[np.int32], number: int, box: tuple[slice, slice, slice], middle: FloatArray, grid: Grid
) -> Lesion:
    own = labels[box] == number
    corner = np.array([part.start for part in box])
    voxels = np.argwhere(own) + corner
    centroid = voxels.mean(axis=0)
    columns = voxels[:, 2]
    middles = middle[voxels[:, 0]]
    diameter, perpendicular, widest = _widest(own, grid)
    first, last = box[0].start, box[0].stop - 1
    return Lesion(
        volume_ml=len(voxels) * grid.voxel_ml,
        first_slice=grid.first_slice + first,
        last_slice=grid.first_slice + last,
        diameter_mm=diameter,
        perpendicular_mm=perpendicular,
        widest_slice=grid.first_slice + first + widest,
        centroid=tuple(centroid.tolist()),
        centroid_ras=None if grid.to_ras is None else tuple((grid.to_ras @ [*centroid, 1])[:3].tolist()),
        right=float(np.mean(np.where(columns == middles, 0.5, columns < middles))),
        is_cut=bool((first == 0 and grid.cut_below) or (last == len(labels) - 1 and grid.cut_above)),
    )


def _widest(own: BoolArray, grid: Grid) -> tuple[float, float, int]:
    """Longest axial diameter, its perpendicular, and the number of their slice in `own` (n, h, w)."""
    pixel = np.array(grid.spacing_mm[1:])
    best = (0.0, 0.0, 0)
    for number, plane in enumerate(own):
        if plane.any():
            length, direction = _diameter(plane, pixel)
            if length > best[0]:
                best = (length, _across(plane, direction, pixel), number)
    return best


def _diameter(plane: BoolArray, pixel: FloatArray) -> tuple[float, FloatArray]:
    """The longest distance between corners of pixels in mm, and its direction (2,), a unit vector."""
    corners = ((np.argwhere(plane)[:, None] + _CORNERS).reshape(-1, 2)) * pixel
    outline = corners[ConvexHull(corners).vertices]
    between = outline[:, None] - outline[None]
    lengths = np.hypot(between[..., 0], between[..., 1])
    at = np.unravel_index(lengths.argmax(), lengths.shape)
    return float(lengths[at]), between[at] / lengths[at]


def _across(plane: BoolArray, direction: FloatArray, pixel: FloatArray) -> float:
    """The longest chord in mm at a right angle to `direction`, from the outermost pixels of each strip across."""
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

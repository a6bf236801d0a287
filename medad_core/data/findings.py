"""What a mask says of a slice, in the terms that questions ask for: where, on which side, how large, how many.

One decision: a finding is computed from the mask of one slice alone, and every truth of a question from a finding. Side
is the patient's, and the brain's middle column parts it; places are those of the picture's square, as in `location`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull

from medad_core.data.location import CELLS, cell_of, square_share

SIXTHS = 6  # cut thirds and halves
SIDES = ("left", "right", "both")
SIZES = ("under 1 cm", "1 to 3 cm", "over 3 cm")
NUMBERS = ("one", "several")
HALVES = {"left half": np.s_[:, :3], "right half": np.s_[:, 3:], "top half": np.s_[:3], "bottom half": np.s_[3:]}
_THIRDS = (slice(0, 2), slice(2, 4), slice(4, 6))
PLACES = {**HALVES, **{cell: (_THIRDS[at // 3], _THIRDS[at % 3]) for at, cell in enumerate(CELLS)}}
ONE_SIDED = 0.9  # with a larger share on one side it is that side's
IN_PLACE = 0.1  # with this share of its pixels there, a tumour is in a place
TIE = 1e-9  # shares are sums of floats: a tenth is a tenth, also mirrored
SMALLEST_MM2 = 20.0  # parts that are smaller count only where there is no larger one
_WITH_CORNERS = np.ones((3, 3), bool)


@dataclass(frozen=True)
class TumourFinding:
    """The tumour of one slice.

    `centroid` (2,) is row and column as shares of the square around the picture. `right` is the share of pixels on the
    patient's right, which is the left of the picture. `longest_mm` is the longest diameter of the largest part, and
    `parts` counts those of at least 20 mm². `spread` (6, 6) is the share of pixels in each sixth of the square.
    """

    centroid: np.ndarray
    right: float
    longest_mm: float
    parts: int
    spread: np.ndarray

    @property
    def cell(self) -> str:
        """The cell of the centroid."""
        return cell_of(self.centroid[0], self.centroid[1], 1, 1)

    @property
    def side(self) -> str:
        """One of SIDES."""
        return side_of(self.right)

    @property
    def size(self) -> str:
        """One of SIZES."""
        return size_of(self.longest_mm)

    @property
    def number(self) -> str:
        """One of NUMBERS."""
        return NUMBERS[self.parts > 1]

    def is_in(self, place: str) -> bool:
        """Whether at least a tenth of its pixels lie in one of PLACES."""
        return bool(self.spread[PLACES[place]].sum() > IN_PLACE - TIE)


def size_of(longest_mm: float) -> str:
    """One of SIZES, from the longest diameter in mm."""
    return SIZES[int(longest_mm >= 10) + int(longest_mm > 30)]


def find(mask: np.ndarray, brain: np.ndarray, pixel_mm2: float) -> TumourFinding | None:
    """What a mask (H, W) bool in display orientation says; None where it is empty.

    The middle column of `brain` (H, W) bool parts left from right. `pixel_mm2` is the area of a (square) pixel.
    """
    places = np.argwhere(mask)
    if not len(places):
        return None
    centroid = np.array(square_share(*(places.mean(axis=0) + 0.5), *mask.shape))
    right = right_share(places[:, 1], middle_column(brain))
    longest_mm, parts = measure_parts(mask, pixel_mm2)
    shares = np.stack(square_share(*(places.T + 0.5), *mask.shape), axis=1)
    return TumourFinding(centroid, right, longest_mm, parts, spread_of(shares))


def middle_column(brain: np.ndarray) -> float:
    """The middle of a brain (H, W) bool from left to right, in columns; that of the picture where it is empty."""
    columns = np.flatnonzero(brain.any(axis=0)) if brain.any() else np.arange(brain.shape[1])
    return float(columns[0] + columns[-1]) / 2


def right_share(columns: np.ndarray, middle: float | np.ndarray) -> float:
    """The share of pixels, given by their columns, on the patient's right of the middle; those on it count half."""
    return float(np.mean(np.where(columns == middle, 0.5, columns < middle)))


def side_of(right: float) -> str:
    """One of SIDES, from the share on the patient's right."""
    if right > ONE_SIDED - TIE:
        return "right"
    return "left" if right < 1 - ONE_SIDED + TIE else "both"


def longest_diameter(plane: np.ndarray, pixel_mm: np.ndarray) -> tuple[float, np.ndarray]:
    """The longest distance in mm between two pixels of `plane` (H, W) bool, which is not empty, and its direction (2,).

    `pixel_mm` (2,) is the distance of rows and of columns. The direction is a unit vector in mm.
    """
    # A pixel has a width: its corners, and not its middle, end a diameter.
    corners = (np.argwhere(plane)[:, None] + np.array([[0, 0], [0, 1], [1, 0], [1, 1]])).reshape(-1, 2) * pixel_mm
    outline = corners[ConvexHull(corners).vertices]
    between = outline[:, None] - outline[None]
    lengths = np.hypot(between[..., 0], between[..., 1])
    at = np.unravel_index(lengths.argmax(), lengths.shape)
    return float(lengths[at]), between[at] / lengths[at]


def measure_parts(mask: np.ndarray, pixel_mm2: float) -> tuple[float, int]:
    """Longest diameter in mm of the largest part of a mask (H, W) bool, and the number of parts; it is not empty."""
    labels, count = ndimage.label(mask, _WITH_CORNERS)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:] * pixel_mm2
    parts = max(1, int((areas >= SMALLEST_MM2).sum()))
    return longest_diameter(labels == 1 + areas.argmax(), np.full(2, np.sqrt(pixel_mm2)))[0], parts


def spread_of(shares: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Points (n, 2), as shares of the square, to the share of them in each sixth (6, 6), float64."""
    edges = np.linspace(0, 1, SIXTHS + 1)
    counts, _, _ = np.histogram2d(*np.clip(shares, 0, 1).T, bins=(edges, edges), weights=weights)
    return counts / max(counts.sum(), 1e-12)

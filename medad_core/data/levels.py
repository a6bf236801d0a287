"""A range of slices of SRI24 on another grid: the same shares of the brain's extent from inferior to superior.

One decision: the extent is that of the slices in which the brain is at least a fifth as large as in its largest slice.
Lower shares depend on how much of the brainstem a skull-stripper leaves, and on SRI24 half of the brains reach the
lowest slice with them. With a fifth, none of the 12 does.

Measured on the 12 training cases of BraTS 2021 in the repository's shared data: the lowest such slice is
13.6 (standard deviation 5.1), the highest 129.4 (4.6). Where each case is placed by the extent of the other 11, slices
60 and 100 are found 4.5 mm from their place (root mean square; 8.4 mm at most). The cases lie on one atlas, so this is
the error of the method. Shares from 0.5 to 40 % gave 3.6 to 4.6 mm.
"""

from __future__ import annotations

import math

import numpy as np

from medad_core.errors import CaseError

BRAIN_SHARE = 0.2  # of the largest cross-section; from here on a slice belongs to the brain's extent
CUT_SHARE = 0.25  # of the largest cross-section in the outermost slice of a volume: here the brain goes on outside it
SRI24_BOTTOM = 13.6  # lower edge of the lowest such slice on SRI24, in slices (= mm)
SRI24_TOP = 130.4  # upper edge of the highest one


def brain_extent(areas: np.ndarray, case_id: str, name: str) -> tuple[float, float]:
    """Lower and upper edge of the brain in slices (slice n lies between n and n + 1).

    `areas` (slices,): brain voxels of every axial slice of the volume, from inferior to superior. Raises CaseError for
    an empty brain, and for one that the volume cuts off.
    """
    largest = areas.max()
    if largest == 0:
        raise CaseError(case_id, f"{name}: empty brain, every voxel is background; check the volume")
    for end, area in (("lowest", areas[0]), ("highest", areas[-1])):
        if area > CUT_SHARE * largest:
            raise CaseError(
                case_id,
                f"{name}: the brain is cut off, its {end} slice still has {area / largest:.0%} of the largest "
                "cross-section, so slices cannot be placed by the brain's extent; give a volume with the whole brain",
            )
    inside = np.flatnonzero(areas >= BRAIN_SHARE * largest)
    return float(inside[0]), float(inside[-1] + 1)


def place_range(first: int, last: int, extent: tuple[float, float], count: int) -> range:
    """Slices of a volume of `count` slices with the anatomy of slices first..last (inclusive) of SRI24.

    `extent` is that of `brain_extent`. These are the slices whose centres lie within the range; a range that is thinner
    than a slice is the slice that holds its middle. Ends beyond the volume are left out: the result may be empty.
    """
    bottom, top = extent
    scale = (top - bottom) / (SRI24_TOP - SRI24_BOTTOM)
    low = bottom + (first - SRI24_BOTTOM) * scale
    high = bottom + (last + 1 - SRI24_BOTTOM) * scale
    start = math.ceil(low - 0.5)
    stop = math.ceil(high - 0.5)
    if start >= stop:
        start = math.floor((low + high) / 2)
        stop = start + 1
    return range(count)[max(start, 0) : max(stop, 0)]

"""A range of slices of SRI24 on another grid: the same shares of the brain's extent from inferior to superior.

One decision: the extent is that of the slices in which the brain is at least 0.3 times as large as in its largest
slice. What is smaller depends on how much of the brainstem a skull-stripper leaves, and on SRI24 five of 12 brains
reach the lowest slice with 1 %, none with 15 %. A brain that goes on outside the volume with more than 0.25 is refused,
so an extent is never that of a part.

Measured on 12 training cases of BraTS 2021: the lowest such slice is 25.5 (standard deviation 4.3), the highest 125.75
(4.2). Where each case is placed by the mean of the other 11, slices 60 and 100 are found 3.8 mm from their place (root
mean square; 10.5 mm at most); of six cases from other data sets on this grid, 5.0 mm. The cases lie on one atlas, so
this is the error of the method. Shares from 0.005 to 0.4 gave 3.6 to 4.6 mm, so the share was not chosen to minimise
the error.
"""

from __future__ import annotations

import math

import numpy as np

from medad_core.errors import CaseError

BRAIN_SHARE = 0.3  # of the largest cross-section; from here on a slice belongs to the brain's extent
CUT_SHARE = 0.25  # of the largest cross-section in the outermost slice of a volume: here the brain goes on outside it
SRI24_BOTTOM = 25.5  # lower edge of the lowest such slice on SRI24, in slices (= mm)
SRI24_TOP = 126.75  # upper edge of the highest one


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
                f"{name}: the brain is cut off: its {end} slice still has {area / largest:.0%} of the largest "
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

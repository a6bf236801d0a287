"""Statistics of a volume: what its outline and its texture look like.

One decision: everything is unchanged under x -> a*x + b (a > 0), as the scaling of pictures is: intensities are given
in units in which the brain's first percentile is 0 and its median 1. All work is in the plane, so slices may lie apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medad_core.data.intensity import box_of

_DEPTH_MM = 30  # how deep rays look: scalp, bone and fluid of a head are thinner together
_EVERY_RAY = 2  # neighbours tell the same
_EVERY_VOXEL = 3
_FAINT = 0.1  # of the tissue's signal; a ring that is fainter is not held against the volume in full
_NEIGHBOURHOOD_MM = 13.0  # wider than a gyrus is thick
_DETAIL_MM = 5.0
_LEAST_DEEP = 1000
_LONGEST_MM = 2.0  # pixels that are longer do not show a gyrus


@dataclass(frozen=True)
class Tissue:
    """values (S, H, W) float32: 0 at the brain's first percentile and outside, 1 at its median. brain: bool.

    Both are cropped to the brain's bounding box.
    """

    values: np.ndarray
    brain: np.ndarray


@dataclass(frozen=True)
class Outline:
    """ring_depth: 0 (none) to 1, how dark a ring under a brighter one is. flat_share: 0 to 1, the longest flat side."""

    ring_depth: float
    flat_share: float


@dataclass(frozen=True)
class Texture:
    """noise: its standard deviation by the tissue's signal. fluid_skew and grey_sign: -1 to 1."""

    noise: float
    fluid_skew: float
    grey_sign: float


def scale_by_tissue(volume: np.ndarray, brain: np.ndarray) -> Tissue:
    """`volume` (S, H, W) in units of tissue signal. Values are NaN or infinite where the brain has no contrast."""
    box = box_of(brain)
    brain = np.ascontiguousarray(brain[box])
    values = volume[box].astype(np.float32)
    black, middle = np.percentile(values[brain][::4], (1, 50)).tolist()
    with np.errstate(divide="ignore", invalid="ignore"):
        values = (values - np.float32(black)) / np.float32(middle - black)
    values[~brain] = 0
    return Tissue(values, brain)


def measure_outline(tissue: Tissue, spacing_mm: tuple[float, float, float]) -> Outline:
    """Look inwards from four sides of every slice.

    ring_depth: along the median ray of a side, b is the brightest value before a depth, a the brightest after it, v the
    value there; the side's ring is the largest (min(a, b) - v) / (min(a, b) + 0.1), and ring_depth the median over
    sides and slices. A head has scalp, dark bone and fluid, then brain; a stripped brain begins at its cortex.
    flat_share: pixels on the outermost line of the brain by those of its longest line, median over slices, the largest
    of four sides. A brain is round, so only a cut makes that line long.
    """
    rings = []
    flat = np.empty((tissue.brain.shape[0], 4))
    for number, (values, brain) in enumerate(zip(tissue.values, tissue.brain, strict=True)):
        turned = ((values, brain, spacing_mm[1]), (values.T, brain.T, spacing_mm[0]))
        for axis, (picture, inside, step_mm) in enumerate(turned):
            # Of floats, because NumPy counts flags along an axis ten times slower.
            counts = inside.astype(np.float32).sum(axis=0)
            ends = np.flatnonzero(counts)
            flat[number, 2 * axis : 2 * axis + 2] = counts[ends[[0, -1]]] / counts.max()
            rings.append(_ring(picture, inside, step_mm))
            rings.append(_ring(picture[:, ::-1], inside[:, ::-1], step_mm))
    return Outline(float(np.median(rings)), float(np.median(flat, axis=0).max()))


def _ring(picture: np.ndarray, inside: np.ndarray, step_mm: float) -> float:
    """Depth of the dark ring that rays along the rows meet, from column 0 on, in the middle half of the rows."""
    rows = np.flatnonzero(inside.any(axis=1))
    quarter = len(rows) // 4
    rows = rows[quarter : len(rows) - quarter : _EVERY_RAY]
    start = inside[rows].argmax(axis=1)
    depth = np.rint(np.arange(_DEPTH_MM + 1) / step_mm).astype(np.intp)
    columns = np.minimum(start + depth[:, None], picture.shape[1] - 1)
    ray = np.maximum(_middle(picture[rows, columns]), 0)
    before = np.maximum.accumulate(ray)
    after = np.maximum.accumulate(ray[::-1])[::-1]
    edge = np.minimum(before, after)
    return float(((edge - ray) / (edge + _FAINT)).max())


def _middle(values: np.ndarray) -> np.ndarray:
    """The (upper) median along the last axis; NaN counts as the largest, so the caller looks for it elsewhere."""
    half = values.shape[-1] // 2
    return np.partition(values, half, axis=-1)[..., half]


def measure_texture(tissue: Tissue, spacing_mm: tuple[float, float, float]) -> Texture:
    """Look at the brain's inside, 6 mm and more from its outline. h is a value less the mean of 13 mm around it.

    noise: median |Laplacian of Laplacians of rows and columns| / (6 * 0.6745), after Immerkaer (1996).
    fluid_skew: (q98 + q2 - 2 q50) / (q98 - q2) of h. Fluid is thin and dark in FLAIR, thin and bright in T2.
    grey_sign: mean of sign(h - its median) * sign(d - its median), where d is the standard deviation of 5 mm around.
    Cortex lies at sulci, where d is large: there T1 is darker than in white matter, and FLAIR is brighter.
    All are NaN where less than a thousand voxels lie so deep, or where pixels are longer than 2 mm.
    """
    values = tissue.values
    inside = _mean(tissue.brain.astype(np.float32), _NEIGHBOURHOOD_MM, spacing_mm) > 0.999
    deep = np.flatnonzero(inside)[::_EVERY_VOXEL]
    if deep.size < _LEAST_DEEP or max(spacing_mm[:2]) > _LONGEST_MM:
        return Texture(np.nan, np.nan, np.nan)
    detail = _mean(values, _DETAIL_MM, spacing_mm).take(deep)
    variance = _mean(values * values, _DETAIL_MM, spacing_mm).take(deep) - detail**2  # its root sorts alike
    above = values.take(deep) - _mean(values, _NEIGHBOURHOOD_MM, spacing_mm).take(deep)
    low, middle, high = np.percentile(above, (2, 50, 98)).tolist()
    skew = (high + low - 2 * middle) / (high - low) if high > low else np.nan
    agree = (above > middle) == (variance > _middle(variance))
    return Texture(_noise(values, deep), skew, 2 * float(agree.mean()) - 1)


def _noise(values: np.ndarray, deep: np.ndarray) -> float:
    """Immerkaer's estimate at the flat indices `deep`, with a median, which ignores edges."""
    width = values.shape[2]
    rows = [
        2 * values.take(deep + c) - values.take(deep - width + c) - values.take(deep + width + c) for c in (-1, 0, 1)
    ]
    return float(_middle(np.abs(2 * rows[1] - rows[0] - rows[2])) / (6 * 0.6745))


def _mean(array: np.ndarray, width_mm: float, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Mean over a square of about `width_mm` in the plane, 0 beyond the array."""
    from scipy import ndimage  # half a tenth of a second, which `medad --help` need not wait for

    rows, columns = (2 * round(width_mm / step / 2 - 0.5) + 1 for step in spacing_mm[:2])
    return ndimage.uniform_filter(array, (0, rows, columns), mode="constant")

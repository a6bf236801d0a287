"""The healthy anatomy of a phantom: what tissue fills each voxel, before any picture is taken of it.

One decision: everything is a distance in millimetres (to the surface, the nearest sulcus, the ventricles' wall), so
that the cortex is a ribbon of even thickness however the folds run. Sulci are noise on the brain's surface carried
straight inwards, which makes them stand upright on it as real ones do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medad_core.data.phantom_fields import Axes, Grid, Vector, ball, edge, tube

_MEAN_RADII = (66.0, 84.0, 66.0)
_CORTEX_MM = 3.2
# The middle line of a lateral ventricle, from front to back, and its temporal horn; points and radii in mm.
_VENTRICLE_BODY = [(12, -37, 1), (6.5, -22, 8), (7.5, -4, 15), (11, 12, 16), (20, 27, 6), (22, 38, 1), (21, 52, 0)]
_VENTRICLE_BODY_RADII = (2.6, 5.0, 5.0, 5.4, 6.2, 4.6, 1.6)
_VENTRICLE_HORN = [(21, 28, 4), (31, 14, -16), (31, -4, -24)]
_VENTRICLE_HORN_RADII = (4.5, 2.2, 2.0)


@dataclass(frozen=True)
class Push:
    """A lesion's mass effect: tissue around `centre` gives way by up to `by_mm`, fading over `reach_mm`."""

    centre: Vector
    by_mm: float
    reach_mm: float


@dataclass(frozen=True)
class Anatomy:
    """Float32 fields (X, Y, Z), a value a voxel.

    `depth_mm` is the depth below the brain's surface, negative outside; `pial_mm` the distance to the nearest fluid
    outside; `ventricle_mm` that to the ventricles' wall. `fluid` and `grey` are shares 0..1 of the voxel.
    """

    depth_mm: np.ndarray
    pial_mm: np.ndarray
    ventricle_mm: np.ndarray
    fluid: np.ndarray
    grey: np.ndarray

    @property
    def brain(self) -> np.ndarray:
        """What a skull-strip keeps: all but the outside and the mouths of the sulci."""
        return (self.depth_mm > 0) & ~((self.fluid > 0.6) & (self.depth_mm < 1.8))


def grow(grid: Grid, rng: np.random.Generator, push: Push | None) -> Anatomy:
    """Draw one person's anatomy."""
    radii = tuple(r * rng.uniform(0.95, 1.05) for r in _MEAN_RADII)
    hull = _depth(grid, rng, radii)
    inner = _warped(grid, rng, push)
    pial, open_mm = _pial(grid, rng, hull, inner, radii)
    ventricle = _ventricles(inner, rng)
    deep = _deep_grey(inner) - 1.2 * grid.noise(rng, 9)
    depth = grid.double(hull)
    pial = grid.double(pial)
    open_mm = grid.double(open_mm)
    ventricle = grid.double(ventricle)
    deep = grid.double(deep)
    fluid = np.maximum(edge(ventricle, 1.6), 0.92 * edge(pial - open_mm, 1.3))
    thickness = _CORTEX_MM * rng.uniform(0.85, 1.2)
    grey = np.maximum(edge(pial - thickness, 1.6), 0.75 * edge(deep, 3.0))
    return Anatomy(depth, pial, ventricle, fluid, grey * edge(-ventricle - 1.0, 2.0))


def _depth(grid: Grid, rng: np.random.Generator, radii: Vector) -> np.ndarray:
    """Depth below the brain's surface: cerebrum (broader behind, flat below), temporal lobes, cerebellum, stem."""
    x, y, z = grid.axes
    egg = 1 + 0.0011 * (y - 8) - 0.0000085 * (y - 8) ** 2
    low = np.where(z < 0, 0.74, 1.0).astype(np.float32)
    cerebrum = (x / egg, y, z / low)
    bodies = [
        (cerebrum, (0, 0, 2), radii),
        (grid.axes, (-40, -12, -26), (25, 40, 25)),
        (grid.axes, (40, -12, -26), (25, 40, 25)),
        (grid.axes, (-24, 46, -42), (30, 30, 25)),
        (grid.axes, (24, 46, -42), (30, 30, 25)),
        (grid.axes, (0, 16, -42), (15, 15, 34)),
    ]
    depth = np.full([axis.size for axis in grid.axes], -99, np.float32)
    for at, centre, size in bodies:
        radius = ball(at, centre, size)
        length = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(at, centre, strict=True)))
        depth = np.maximum(depth, length * (1 - radius) / np.maximum(radius, 0.05))
    notch = 5 * np.exp(-((x / 5) ** 2)) * (z > -30)
    return depth - notch + 1.1 * grid.noise(rng, 24) + 0.5 * grid.noise(rng, 9)


def _warped(grid: Grid, rng: np.random.Generator, push: Push | None) -> Axes:
    """Where each voxel's tissue lies in the ideal anatomy: nobody is symmetric, and a mass pushes tissue away."""
    places = [axis + 1.3 * grid.noise(rng, 50) for axis in grid.axes]
    if push is None:
        return places
    offsets = [axis - c for axis, c in zip(grid.axes, push.centre, strict=True)]
    distance = np.sqrt(sum(offset**2 for offset in offsets))
    shift = push.by_mm * np.exp(-((distance / push.reach_mm) ** 2)) / np.maximum(distance, 1.0)
    return [place - shift * offset for place, offset in zip(places, offsets, strict=True)]


def _pial(
    grid: Grid, rng: np.random.Generator, hull: np.ndarray, inner: Axes, radii: Vector
) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest fluid outside (surface, sulcus, fissure), and half the width of its gap there, in mm."""
    radius = np.maximum(ball(inner, (0, 0, 2), radii), 0.2)
    bend = [grid.noise(rng, 14) for _ in range(3)]
    foot = [0.86 * place / radius + 1.6 * b for place, b in zip(inner, bend, strict=True)]
    inner = [place + 1.4 * b for place, b in zip(inner, bend, strict=True)]
    pial = hull
    gape = np.full_like(hull, 0.2)
    atrophy = rng.uniform(0.6, 1.5)
    for wave, deepest, spread, width in ((17, 15, 6, 0.95), (13, 9, 7, 0.8), (10, 3, 5, 0.7)):
        folds = grid.sample(grid.noise(rng, wave), foot)
        floor = deepest + spread * grid.sample(grid.noise(rng, 22), foot)
        slope = grid.slope(folds)
        side = np.abs(folds) / np.maximum(slope, 0.45 * float(slope.mean()))
        below = np.clip(hull - floor, 0, None)
        distance = np.hypot(side, below)
        narrowing = np.clip(1.15 - hull / np.maximum(floor + 8, 4), 0.25, 1)
        gape = np.where(distance < pial, width * atrophy * narrowing, gape)
        pial = np.minimum(pial, distance)
    for distance, width in ((_midline(inner), 0.8), (_sylvian(inner), 0.9)):
        gape = np.where(distance < pial, width * atrophy, gape)
        pial = np.minimum(pial, distance)
    return pial, gape


def _midline(at: Axes) -> np.ndarray:
    """The fissure between the hemispheres, all around the corpus callosum and what lies below it."""
    x, y, z = at
    joined = np.clip(1 - np.sqrt(((y - 4) / 40) ** 2 + ((z + 22) / 45) ** 2), 0, None) * 40
    return np.hypot(x, joined) + np.clip(-35 - z, 0, None)


def _sylvian(at: Axes) -> np.ndarray:
    """The lateral fissures: oblique sheets that run in from the side to the insula, and up and down along it."""
    x, y, z = at
    x = np.abs(x)
    sheet = 0.80 * (y + 6 + 0.12 * (x - 40)) - 0.60 * (z - 2)
    inwards = np.hypot(sheet, np.clip(42 - x, 0, None))
    inwards = np.hypot(inwards, np.clip(np.abs(z - 1) - 15, 0, None))
    insula = np.hypot(x - 42 + 0.006 * (y + 4) ** 2, np.clip(np.abs(y + 4) - 17, 0, None))
    return np.minimum(inwards, np.hypot(insula, np.clip(np.abs(z - 1) - 12, 0, None)))


def _ventricles(at: Axes, rng: np.random.Generator) -> np.ndarray:
    """Distance to the wall of the lateral and third ventricles, negative inside."""
    size = rng.uniform(0.65, 1.35)
    wide = rng.uniform(0.9, 1.15)
    x, y, z = at
    wall = np.maximum(ball(at, (0, 2, -6), (1.8 * size, 15, 9)) - 1, -1) * 1.8
    for side in (-1, 1):
        grown = size * rng.uniform(0.85, 1.15)
        mirrored = (side * x / wide, y, z)
        body_radii = [grown * radius for radius in _VENTRICLE_BODY_RADII]
        horn_radii = [grown * radius for radius in _VENTRICLE_HORN_RADII]
        wall = np.minimum(wall, tube(mirrored, _VENTRICLE_BODY, body_radii, flat=0.72))
        wall = np.minimum(wall, tube(mirrored, _VENTRICLE_HORN, horn_radii))
    return wall


def _deep_grey(at: Axes) -> np.ndarray:
    """Distance in mm to caudate, lentiform nucleus and thalamus, roughly, negative inside."""
    x, y, z = at
    x = np.abs(x)
    tilted = (x - 0.22 * y, y + 0.22 * x, z)
    lentiform = (ball(tilted, (24.5, 1, -2), (6, 15, 10)) - 1) * 7
    thalamus = (ball((x - 0.25 * y, y, z), (7, 12, 0), (7.5, 14, 9)) - 1) * 8
    caudate = tube((x, y, z), [(12.5, -28, 3), (15, -14, 12), (18, 6, 19)], [6, 4.2, 2])
    return np.minimum(np.minimum(lentiform, thalamus), caudate)


def thin_caps(anatomy: Anatomy) -> np.ndarray:
    """Share 0..1 of the thin bright seam along the ventricles: a normal finding that a screening must not report."""
    return np.clip(1 - np.abs(anatomy.ventricle_mm - 0.6) / 1.8, 0, 1)

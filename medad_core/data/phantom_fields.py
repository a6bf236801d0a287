"""Smooth fields in the phantom's space: coordinates, noise, distances to simple bodies.

One decision: fields are drawn on every second voxel and doubled, because a field that is smooth over 4 mm is the same
at an eighth of the cost; only what is thinner (the picture, its noise) is drawn at every voxel.
Coordinates are millimetres from the brain's centre: x to the patient's left, y to posterior, z to superior.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

Vector = tuple[float, float, float]
Axes = Sequence[np.ndarray]


class Grid:
    """Every second voxel of a volume of `shape` (X, Y, Z) whose voxels are `voxel_mm` wide.

    Its fields are float32 (X // 2 + 1, Y // 2 + 1, Z // 2 + 1). `centre` is the brain's, in voxels.
    """

    def __init__(self, shape: tuple[int, int, int], voxel_mm: float, centre: Vector) -> None:
        self.shape = shape
        self.voxel_mm = voxel_mm
        voxels = [np.arange(size // 2 + 1) * 2 - middle for size, middle in zip(shape, centre, strict=True)]
        axes = [(places * voxel_mm).astype(np.float32) for places in voxels]
        self.axes: Axes = (axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :])
        self._origin = tuple(float(axis[0]) for axis in axes)

    def noise(self, rng: np.random.Generator, wave_mm: float) -> np.ndarray:
        """Smooth noise of zero mean and unit variance whose bumps are about `wave_mm` apart."""
        return smooth_noise(rng, [axis.size for axis in self.axes], wave_mm / (2 * self.voxel_mm))

    def double(self, field: np.ndarray) -> np.ndarray:
        """The field at every voxel of `shape`, by linear interpolation."""
        for axis, size in enumerate(self.shape):
            field = np.moveaxis(field, axis, 0)
            out = np.empty((2 * field.shape[0] - 1, *field.shape[1:]), np.float32)
            out[::2] = field
            np.add(field[:-1], field[1:], out=out[1::2])
            out[1::2] *= 0.5
            field = np.moveaxis(out[:size], 0, axis)
        return np.ascontiguousarray(field)

    def sample(self, field: np.ndarray, at: Axes) -> np.ndarray:
        """The field at other places (three arrays in mm), linear, the edge's value beyond it."""
        step = 2 * self.voxel_mm
        index = [
            (np.broadcast_to(place, field.shape) - origin) / step
            for place, origin in zip(at, self._origin, strict=True)
        ]
        return ndimage.map_coordinates(field, index, order=1, mode="nearest", output=np.float32)

    def slope(self, field: np.ndarray) -> np.ndarray:
        """Length of the field's gradient, per mm."""
        return np.sqrt(sum(part**2 for part in np.gradient(field, 2 * self.voxel_mm)))


def smooth_noise(rng: np.random.Generator, sizes: Sequence[int], wave: float) -> np.ndarray:
    """Cubic B-splines on random knots `wave / 2` samples apart: float32 of `sizes`, zero mean, unit variance."""
    step = max(wave / 2, 1.0)
    knots = [int(np.ceil((n - 1) / step)) + 4 for n in sizes]
    field = rng.standard_normal(knots, dtype=np.float32)
    for axis, size in enumerate(sizes):
        field = np.moveaxis(np.tensordot(_spline(size, knots[axis], step), field, axes=(1, axis)), 0, axis)
    field -= field.mean()
    return np.ascontiguousarray(field / max(float(field.std()), 1e-6))


def _spline(size: int, knots: int, step: float) -> np.ndarray:
    """(size, knots) weights of the uniform cubic B-spline."""
    distance = np.abs(np.arange(size)[:, None] / step - np.arange(knots)[None] + 1)
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def ball(at: Axes, centre: Vector, radii: Vector) -> np.ndarray:
    """Radius in the metric of an ellipsoid: 1 on its surface."""
    return np.sqrt(sum(((axis - c) / r) ** 2 for axis, c, r in zip(at, centre, radii, strict=True)))


def tube(at: Axes, points: Sequence[Vector], radii: Sequence[float], flat: float = 1.0) -> np.ndarray:
    """Distance in mm to the wall of a bent tube through `points`, negative inside; `flat` < 1 squeezes it in x."""
    scaled = (at[0] / flat, at[1], at[2])
    nearest: np.ndarray | None = None
    for start, end, r0, r1 in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
        origin = np.array([start[0] / flat, start[1], start[2]], np.float32)
        step = np.array([end[0] / flat, end[1], end[2]], np.float32) - origin
        parts = list(zip(scaled, origin, step, strict=True))
        along = sum((axis - o) * d for axis, o, d in parts) / np.float32(step @ step)
        along = np.clip(along, 0, 1)
        off = np.sqrt(sum((axis - o - along * d) ** 2 for axis, o, d in parts))
        wall = off - (r0 + (r1 - r0) * along)
        nearest = wall if nearest is None else np.minimum(nearest, wall)
    return nearest


def edge(distance: np.ndarray, width: float) -> np.ndarray:
    """1 inside (distance < 0), 0 outside, a ramp `width` wide between: the share of a voxel that a body fills."""
    return np.clip(0.5 - distance / width, 0, 1)

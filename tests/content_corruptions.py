"""Volumes and masks made wrong on purpose, from good ones: what `medad_core.data.content` must notice.

One decision: every corruption is a pure function of slices (S, H, W) whose background is 0, and of a seed.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

Array = np.ndarray


def on_zero(volume: Array, brain: Array) -> Array:
    """float32 with brain above 0 and all else 0, whatever the stored background was."""
    values = volume.astype(np.float32)
    lowest = values[brain].min()
    return np.where(brain, values - lowest + 1e-3 * (np.median(values[brain]) - lowest), 0)


def add_head(
    volume: Array, rng: np.random.Generator, scalp: float | None = None, zero_bone: bool = False, part: float = 1.0
) -> Array:
    """Fluid 1-4 mm, bone 4-8 mm with marrow, scalp 3-8 mm around a stripped brain of 1 mm pixels, on air that is zero.

    `scalp` is its signal by the brain's (drawn from 0.35, fat suppressed, to 2.2); thickness varies around the head.
    `zero_bone` sets bone to zero as well, as a threshold for air does. `part` of the circumference is left, as where
    stripping failed on one side.
    """
    brain = volume != 0
    low, middle = np.percentile(volume[brain], (1, 50))
    signal = rng.uniform(0.35, 2.2) if scalp is None else scalp
    thick = (rng.uniform(1, 4), rng.uniform(4, 8), rng.uniform(3, 8))
    bone, fluid, marrow = rng.uniform(0, 0.12), rng.uniform(0.1, 0.3), rng.uniform(0.05, 0.6)
    phase = rng.uniform(0, 2 * np.pi, 4)
    head = np.zeros(volume.shape, np.float32)
    rows, columns = np.indices(volume.shape[1:])
    for number in np.flatnonzero(brain.sum(axis=(1, 2)) > 300):
        inside = brain[number]
        filled = ndimage.binary_fill_holes(inside)
        away = ndimage.distance_transform_edt(~filled)
        middle_row, middle_column = ndimage.center_of_mass(filled)
        angle = np.arctan2(rows - middle_row, columns - middle_column)
        to_bone = thick[0] * (1 + 0.4 * np.sin(2 * angle + phase[0]))
        to_scalp = to_bone + thick[1] * (1 + 0.25 * np.sin(3 * angle + phase[1]))
        to_air = to_scalp + thick[2] * (1 + 0.35 * np.sin(2 * angle + phase[2]) + 0.15 * np.sin(5 * angle + phase[3]))
        share = np.select([away <= to_bone, away <= to_scalp, away <= to_air], [fluid, bone, signal], 0.0)
        along = (away - to_bone) / (to_scalp - to_bone)
        share[(along > 0.35) & (along < 0.65)] = marrow
        around = ndimage.gaussian_filter(low + share * (middle - low), 0.7)
        sigma = 0.04 * (middle - low)
        around = np.hypot(around + sigma * rng.standard_normal(around.shape), sigma * rng.standard_normal(around.shape))
        around[(away > to_air) | (zero_bone & (around < low + 0.2 * (middle - low)))] = 0
        around[np.abs((angle - phase[0] + np.pi) % (2 * np.pi) - np.pi) > np.pi * part] = 0
        head[number] = np.where(inside, volume[number], around)
    return head


def add_noise(volume: Array, rng: np.random.Generator, share: float) -> Array:
    """Rician noise whose standard deviation is `share` of the tissue's signal, inside the brain."""
    brain = volume != 0
    low, middle = np.percentile(volume[brain], (1, 50))
    sigma = share * (middle - low)
    noise = rng.standard_normal((2, *volume.shape))
    return np.where(brain, np.hypot(volume + sigma * noise[0], sigma * noise[1]), 0).astype(np.float32)


def move(volume: Array, rng: np.random.Generator, size: float) -> Array:
    """Motion between lines of k-space: five blocks of lines from heads moved by about `size` mm and degrees."""
    moved = []
    for picture in volume.astype(np.float32):
        lines = np.fft.fftshift(np.fft.fft2(picture))
        block = np.searchsorted(np.sort(rng.integers(0, len(lines), 4)), np.arange(len(lines)))
        for number in range(1, 5):
            turned = ndimage.rotate(picture, rng.normal(0, size), reshape=False, order=1)
            other = np.fft.fftshift(np.fft.fft2(ndimage.shift(turned, rng.normal(0, size, 2), order=1)))
            chosen = (block == number) & (np.abs(np.arange(len(lines)) - len(lines) // 2) > 4)
            lines[chosen] = other[chosen]
        moved.append(np.abs(np.fft.ifft2(np.fft.ifftshift(lines))))
    return np.where(volume != 0, np.array(moved), 0).astype(np.float32)


def ring(volume: Array, kept: float) -> Array:
    """Gibbs ringing: only the middle share `kept` of the lines of k-space."""
    lines = np.fft.fftshift(np.fft.fft2(volume.astype(np.float32)), axes=(1, 2))
    away = np.abs(np.arange(volume.shape[1]) - volume.shape[1] // 2)
    lines[:, away > kept * volume.shape[1] / 2] = 0
    return np.where(volume != 0, np.abs(np.fft.ifft2(np.fft.ifftshift(lines, axes=(1, 2)))), 0).astype(np.float32)


def crop(volume: Array, pixels: int, side: int, pad: bool = False) -> Array:
    """Lose `pixels` of the brain on one of four sides (anterior, posterior, right, left); `pad` keeps the shape."""
    turned = np.moveaxis(volume, 1 + side // 2, 0)
    lines = np.flatnonzero(turned.any(axis=(1, 2)))
    kept = slice(lines[0] + pixels, None) if side % 2 == 0 else slice(0, lines[-1] + 1 - pixels)
    if not pad:
        return np.moveaxis(turned[kept], 0, 1 + side // 2)
    cut = np.zeros_like(turned)
    cut[kept] = turned[kept]
    return np.moveaxis(cut, 0, 1 + side // 2)


def segment(volume: Array, brain: Array) -> Array:
    """Three classes by k-means of intensity, 1 (dark) to 3 (bright), 0 outside the brain: a tissue segmentation."""
    values = volume[brain].astype(np.float64)
    centres = np.percentile(values, (10, 50, 85))
    for _ in range(15):
        labels = np.abs(values[:, None] - centres).argmin(axis=1)
        centres = np.array([values[labels == number].mean() for number in range(3)])
    classes = np.zeros(volume.shape, np.uint8)
    classes[brain] = labels + 1
    return classes

"""The window of a slice: the square of the picture that the encoder sees, around the brain.

One decision: a window depends on the brain of its slice and on nothing else. So a slice has the same window in every
range, and pixels of 1 mm are as large to the encoder on every grid, unless a brain is wider than the window.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


def brain_windows(brain: np.ndarray, side: int) -> np.ndarray:
    """Brains (N, H, W) bool to windows (N, 3) int32: top, left and side in pixels; parts may lie beside the picture.

    A window is `side` pixels wide and centred on the box of the brain. It is wider where the brain is; without brain it
    is centred on the picture.
    """
    return np.array([_around(one, side) for one in brain], np.int32).reshape(-1, 3)


def _around(brain: np.ndarray, side: int) -> tuple[int, int, int]:
    rows = np.flatnonzero(brain.any(axis=1))
    columns = np.flatnonzero(brain.any(axis=0))
    if not len(rows):
        rows, columns = (np.arange(size) for size in brain.shape)
        return _centred(rows, columns, side)
    longest = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    return _centred(rows, columns, max(side, int(longest)))


def _centred(rows: np.ndarray, columns: np.ndarray, side: int) -> tuple[int, int, int]:
    top, left = (int(places[0] + places[-1] + 1 - side) // 2 for places in (rows, columns))
    return top, left, side


def cut_windows(pictures: np.ndarray, windows: np.ndarray, side: int) -> np.ndarray:
    """The windows (N, 3) of pictures (N, …, H, W), all `side` pixels wide: (N, …, side, side), of the same dtype.

    What lies beside a picture is 0. A wider window is shrunk by linear interpolation and rounded, but for floats.
    """
    cut = np.zeros((*pictures.shape[:-2], side, side), pictures.dtype)
    for number, window in enumerate(windows.tolist()):
        part = _cut(pictures[number], *window)
        cut[number] = part if window[2] == side else _shrunk(part, side)
    return cut


def _cut(picture: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    height, width = picture.shape[-2:]
    cut = np.zeros((*picture.shape[:-2], side, side), picture.dtype)
    y = slice(max(top, 0), max(min(top + side, height), 0))
    x = slice(max(left, 0), max(min(left + side, width), 0))
    cut[..., y.start - top : y.stop - top, x.start - left : x.stop - left] = picture[..., y, x]
    return cut


def _shrunk(part: np.ndarray, side: int) -> np.ndarray:
    flat = torch.from_numpy(part.reshape(1, -1, *part.shape[-2:]).astype(np.float32))
    small = F.interpolate(flat, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
    if part.dtype.kind in "iub":
        small = small.round()
    return small.numpy().reshape(*part.shape[:-2], side, side).astype(part.dtype)


def frames_of(windows: np.ndarray, height: int, width: int) -> np.ndarray:
    """Windows (N, 3) to frames (N, 3) float32: top, left and side as shares of the square around the picture.

    The frame of the whole square is (0, 0, 1).
    """
    square = max(height, width)
    margins = np.array([(square - height) // 2, (square - width) // 2, 0])
    return ((windows + margins) / square).astype(np.float32)


def whole_square(count: int, height: int, width: int) -> np.ndarray:
    """Windows (N, 3) that are the square around the picture: what an encoder sees that gets no windows."""
    square = max(height, width)
    return np.tile(np.array([-((square - height) // 2), -((square - width) // 2), square], np.int32), (count, 1))

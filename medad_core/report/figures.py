"""Pictures of one slice: the parts that the page lays over each other.

One decision: the slice, the map and the outline stay apart (small WebP, smaller WebP, vector path), so that one slice
is stored once for three panels, and the outline stays sharp at any zoom.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from medad_core.report.colour import overlay

OUTLINE = "#35e0c8"
_MARGIN = 8


@dataclass(frozen=True)
class View:
    """The square part of a picture that is shown, in pixels."""

    top: int
    left: int
    side: int


def brain_view(images: Sequence[np.ndarray]) -> View:
    """The smallest square around all that is not background in any of the uint8 (H, W) images, with room for R and L.

    One view for all pictures of a gallery keeps sizes comparable between them; black borders only cost room.
    """
    height, width = images[0].shape
    inside = np.any([image > 0 for image in images], axis=0)
    if not inside.any():
        return View(0, 0, min(height, width))
    rows = np.flatnonzero(inside.any(axis=1))
    columns = np.flatnonzero(inside.any(axis=0))
    side = min(max(np.ptp(rows), np.ptp(columns)) + 1 + 2 * _MARGIN, height, width)
    top = np.clip((rows[0] + rows[-1] + 1 - side) // 2, 0, height - side)
    left = np.clip((columns[0] + columns[-1] + 1 - side) // 2, 0, width - side)
    return View(int(top), int(left), int(side))


def slice_uri(image: np.ndarray) -> str:
    """uint8 (H, W) slice as a data URI."""
    return _webp(Image.fromarray(image), quality=82)


def map_uri(anomaly_map: np.ndarray) -> str:
    """Map (H, W) float in [0, 1] as a half-transparent data URI.

    It is drawn at half size: it is a 16 × 16 grid blown up, so nothing is lost.
    """
    picture = Image.fromarray(overlay(anomaly_map), "RGBA")
    return _webp(picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX), quality=80)


def outline_path(mask: np.ndarray) -> str:
    """SVG path along the pixel edges of a bool (H, W) mask, one unit a pixel; empty for an empty mask.

    Edges are exact and not smoothed: what is drawn is what the expert marked.
    """
    padded = np.pad(mask.astype(bool), 1)
    horizontal = padded[1:, 1:-1] != padded[:-1, 1:-1]  # (H + 1, W): an edge above pixel (y, x)
    vertical = (padded[1:-1, 1:] != padded[1:-1, :-1]).T  # (W + 1, H): an edge left of pixel (y, x)
    across = [f"M{x} {y}h{length}" for y, x, length in _runs(horizontal)]
    down = [f"M{x} {y}v{length}" for x, y, length in _runs(vertical)]
    return "".join(across + down)


def _runs(edges: np.ndarray) -> list[tuple[int, int, int]]:
    """(row, first column, length) of each run of True in a bool (R, C) array."""
    steps = np.diff(np.pad(edges.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    return list(zip(rows.tolist(), starts.tolist(), (ends - starts).tolist(), strict=True))


def _webp(picture: Image.Image, quality: int) -> str:
    content = io.BytesIO()
    picture.save(content, "WEBP", quality=quality, method=4)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"

"""Pictures of one slice: the parts the page lays over each other, and a flat PNG for places that take only that.

One decision: on the page the slice, the map and the outline stay apart (small WebP, smaller WebP, vector path), so that one
slice is stored once for three panels and the outline stays sharp at any zoom.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from medad_core.report.colour import overlay

OUTLINE = "#35e0c8"
_GAP = 6
_MARGIN = 8


@dataclass(frozen=True)
class View:
    """The square part of a picture that is shown, in pixels."""

    top: int
    left: int
    side: int


def brain_view(images: Sequence[np.ndarray]) -> View:
    """The smallest square around everything that is not background in any of the uint8 (H, W) images, with room for R and L.

    One view for all pictures of a gallery keeps sizes comparable between them; black borders only cost room.
    """
    height, width = images[0].shape
    inside = np.any([image > 0 for image in images], axis=0)
    if not inside.any():
        return View(0, 0, min(height, width))
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    side = min(max(np.ptp(rows), np.ptp(columns)) + 1 + 2 * _MARGIN, height, width)
    top = np.clip((rows[0] + rows[-1] + 1 - side) // 2, 0, height - side)
    left = np.clip((columns[0] + columns[-1] + 1 - side) // 2, 0, width - side)
    return View(int(top), int(left), int(side))


def slice_uri(image: np.ndarray) -> str:
    """uint8 (H, W) slice as a data URI."""
    return _webp(Image.fromarray(image), quality=82)


def map_uri(anomaly_map: np.ndarray) -> str:
    """Map (H, W) float in [0, 1] as a half-transparent data URI at half size: it is a 16 × 16 grid blown up, nothing is lost."""
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


def panel_png(image: np.ndarray, mask: np.ndarray | None, anomaly_map: np.ndarray, scale: int = 2) -> bytes:
    """Slice, slice with expert outline (where a mask exists) and slice with map, cut to the brain, side by side, as PNG bytes.

    `image` uint8 (H, W), `mask` bool (H, W) or None, `anomaly_map` float (H, W) in [0, 1]; pixels are enlarged `scale` times.
    """
    view = brain_view([image])
    part = np.s_[view.top : view.top + view.side, view.left : view.left + view.side]
    image, anomaly_map, mask = image[part], anomaly_map[part], None if mask is None else mask[part]
    plain = (
        Image.fromarray(image).convert("RGB").resize((view.side * scale, view.side * scale), Image.Resampling.BICUBIC)
    )
    veil = Image.fromarray(overlay(anomaly_map), "RGBA").resize(plain.size, Image.Resampling.BICUBIC)
    mapped = Image.alpha_composite(plain.convert("RGBA"), veil).convert("RGB")
    panels = [plain, mapped] if mask is None else [plain, _outlined(plain, mask, scale), _outlined(mapped, mask, scale)]
    width, height = plain.size
    sheet = Image.new("RGB", (len(panels) * (width + _GAP) - _GAP, height), "white")
    for number, panel in enumerate(panels):
        sheet.paste(_sided(panel), (number * (width + _GAP), 0))
    return _bytes(sheet, "PNG", optimize=True)


def _outlined(picture: Image.Image, mask: np.ndarray, scale: int) -> Image.Image:
    out = picture.copy()
    draw = ImageDraw.Draw(out)
    padded = np.pad(mask.astype(bool), 1)
    for y, x, length in _runs(padded[1:, 1:-1] != padded[:-1, 1:-1]):
        draw.line([x * scale, y * scale, (x + length) * scale, y * scale], OUTLINE, width=max(1, scale // 2))
    for x, y, length in _runs((padded[1:-1, 1:] != padded[1:-1, :-1]).T):
        draw.line([x * scale, y * scale, x * scale, (y + length) * scale], OUTLINE, width=max(1, scale // 2))
    return out


def _sided(picture: Image.Image) -> Image.Image:
    """The picture with R and L at its sides: radiological display, the patient's right on the left."""
    out = picture.copy()
    draw = ImageDraw.Draw(out)
    size = max(10, out.height // 22)
    for letter, x, anchor in (("R", size // 2, "lm"), ("L", out.width - size // 2, "rm")):
        draw.text((x, out.height // 2), letter, "#c8d2dc", font_size=size, anchor=anchor)
    return out


def _runs(edges: np.ndarray) -> list[tuple[int, int, int]]:
    """(row, first column, length) of each run of True in a bool (R, C) array."""
    steps = np.diff(np.pad(edges.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    return [(int(r), int(s), int(e - s)) for r, s, e in zip(rows, starts, ends, strict=True)]


def _webp(picture: Image.Image, quality: int) -> str:
    encoded = base64.b64encode(_bytes(picture, "WEBP", quality=quality, method=4)).decode("ascii")
    return f"data:image/webp;base64,{encoded}"


def _bytes(picture: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()

"""The decoder: patch features compared with "normal" and "abnormal", and its maps.

One decision: the map is kept as the grid of logit differences (taps, gh, gw). A softmax over two logits is the sigmoid
of their difference and interpolation is linear, so the grid *is* the map, in 2 kB instead of 100 kB; it is rendered on
demand. Source: medad_core/README.md, "The decoder"; AnomalyGPT (Gu et al. 2023) and WinCLIP-style text comparison.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medad_core.data.window import whole_square

LOGIT_SCALE = 100.0


class Decoder(nn.Module):
    """One linear layer a tap into the text space, then 100 · cosine with both texts.

    `text` is the (2, text_width) pair of unit vectors, 0 normal and 1 abnormal. It is stored with the weights, which
    fit those texts only. `taps` is the number of tapped blocks, `width` that of a patch's features.
    """

    def __init__(self, taps: int, width: int, text: Tensor) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(width, text.shape[1]) for _ in range(taps))
        self.register_buffer("text", text.clone())

    def forward(self, features: Tensor) -> Tensor:
        """Patch features (B, taps, gh, gw, width) to logit differences abnormal − normal (B, taps, gh, gw), float32.

        The layers run in the type of their weights; the cosine is float32 always, because it is multiplied by 100.
        """
        projected = [
            layer(features[:, tap].to(layer.weight.dtype)).float() for tap, layer in enumerate(self.projections)
        ]
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(torch.stack(projected, dim=1), dim=-1) @ (LOGIT_SCALE * (self.text[1] - self.text[0]))


def upsample(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Grids (B, taps, gh, gw) to (B, taps, H, W): bilinear, corners aligned, *before* the sigmoid."""
    return F.interpolate(grid, size=size, mode="bilinear", align_corners=True)


def render_maps(grid: Tensor, height: int, width: int, windows: np.ndarray | None = None) -> Tensor:
    """Logit-difference grids (B, taps, gh, gw) to anomaly probability maps (B, height, width), float32 in [0, 1].

    `windows` (B, 3) are what the encoder saw of each slice: top, left and side in pixels of the picture; a map is 0
    beside its window. Without them it saw the slice centred on a square of side max(height, width).
    """
    if windows is None:  # without indices that a GPU would have to wait for
        top, left, side = whole_square(1, height, width)[0].tolist()
        square = upsample(grid.float(), (side, side)).sigmoid().mean(dim=1)
        return square[:, -top : height - top, -left : width - left]
    maps = torch.zeros(len(grid), height, width, device=grid.device)
    for window in {tuple(window) for window in windows.tolist()}:
        top, left, side = window
        same = torch.from_numpy((windows == window).all(axis=1)).to(grid.device)
        drawn = upsample(grid[same].float(), (side, side)).sigmoid().mean(dim=1)
        y = slice(max(top, 0), max(min(top + side, height), 0))
        x = slice(max(left, 0), max(min(left + side, width), 0))
        maps[same, y, x] = drawn[:, y.start - top : y.stop - top, x.start - left : x.stop - left]
    return maps


def render_map(grid: np.ndarray, height: int, width: int, window: np.ndarray | None = None) -> np.ndarray:
    """One slice of `render_maps`: (taps, gh, gw) float16 or float32 to (height, width) float32; `window` (3,)."""
    batch = torch.from_numpy(np.ascontiguousarray(grid, dtype=np.float32)).unsqueeze(0)
    return render_maps(batch, height, width, None if window is None else window[None])[0].numpy()


def image_scores(maps: Tensor, kind: str, quantile: float) -> Tensor:
    """Anomaly scores (B,) from maps (B, H, W); `kind` is "max", "mean", or "quantile" for `quantile` of the pixels."""
    pixels = maps.flatten(1)
    if kind == "max":
        return pixels.amax(1)
    if kind == "mean":
        return pixels.mean(1)
    # torch.quantile refuses more than 16 million values; kthvalue has no such limit and sorts nothing.
    rank = max(1, min(pixels.shape[1], round(quantile * pixels.shape[1])))
    return pixels.kthvalue(rank, dim=1).values


def peaks(maps: Tensor) -> Tensor:
    """Position (row, column) of each map's maximum, int64 (B, 2)."""
    flat = maps.flatten(1).argmax(1)
    return torch.stack([flat // maps.shape[2], flat % maps.shape[2]], dim=1)


def focal_dice_loss(grid: Tensor, masks: Tensor) -> Tensor:
    """Sum over taps of focal loss (γ = 2, smooth 1e-5) and dice loss (smooth 1); a scalar.

    See medad_core/README.md, "The decoder".

    `grid` (B, taps, gh, gw) holds logit differences. `masks` (B, H, W) are float in [0, 1], all zero for a normal
    slice. Dice is taken over the batch, because a slice without tumour has no overlap of its own.
    Source: medad_core/README.md, "The decoder".
    """
    logits = upsample(grid, tuple(masks.shape[-2:]))
    target = masks.unsqueeze(1).expand_as(logits)
    probability = logits.sigmoid()
    agreement = (probability * target + (1 - probability) * (1 - target)).clamp(1e-5, 1 - 1e-5)
    focal = (-((1 - agreement) ** 2) * agreement.log()).mean(dim=(0, 2, 3))
    overlap = (probability * target).sum(dim=(0, 2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum(dim=(0, 2, 3)) + target.sum(dim=(0, 2, 3)) + 1)
    return (focal + dice).sum()

"""The colour scale of anomaly maps.

One decision: matplotlib's "plasma" (van der Walt and Smith 2015), which readers know. It is perceptually uniform, and
its lightness rises all the way, so it survives a grey printer.
"""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps

# Below this probability the anatomy shows unveiled; from the second on, the colour is at full strength.
_FAINT = 0.08
_FULL = 0.45
OPACITY = 0.68


def overlay(anomaly_map: np.ndarray) -> np.ndarray:
    """`anomaly_map` (H, W) float in [0, 1] as RGBA uint8 (H, W, 4), clear where nothing is suspected."""
    probability = np.clip(anomaly_map, 0, 1)
    rgba = colormaps["plasma"](probability, bytes=True)
    alpha = OPACITY * np.clip((probability - _FAINT) / (_FULL - _FAINT), 0, 1)
    rgba[..., 3] = np.round(alpha * 255).astype(np.uint8)
    return rgba


def colour_table() -> dict[str, list[int]]:
    """The scale for a viewer that has an opacity of its own: R, G, B and A (0 to 255) of 256 probabilities from 0 to 1.

    A is 255 where the colour is at full strength.
    """
    rgba = overlay(np.linspace(0, 1, 256)[None])[0]
    alpha = np.round(rgba[:, 3] / OPACITY).clip(0, 255)
    columns = (*rgba[:, :3].T, alpha)
    return {name: column.astype(int).tolist() for name, column in zip("RGBA", columns, strict=True)}


def legend_gradient(steps: int = 24, backdrop: int = 110) -> str:
    """CSS gradient of the scale as it looks over brain tissue of grey value `backdrop` (0..255).

    So the legend matches the pictures.
    """
    rgba = overlay(np.linspace(0, 1, steps)[None])[0].astype(float)
    alpha = rgba[:, 3:] / 255
    blended = np.round(rgba[:, :3] * alpha + backdrop * (1 - alpha)).astype(np.uint8)
    colours = [f"#{colour.tobytes().hex()}" for colour in blended]
    return f"linear-gradient(90deg,{','.join(colours)})"

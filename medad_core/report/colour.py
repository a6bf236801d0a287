"""The colour scale of anomaly maps.

One decision: the scale is built in OKLab (Ottosson 2020) with lightness rising in equal steps, so that it is perceptually
uniform by construction, survives a grey printer and needs no plotting library.
"""

from __future__ import annotations

import numpy as np

# Lightness, chroma and hue in degrees along the scale: deep violet, magenta, orange, pale yellow.
_STOPS = np.array([[0.30, 0.14, 300.0], [0.50, 0.21, 345.0], [0.70, 0.19, 400.0], [0.93, 0.12, 465.0]])
# Below this probability the anatomy shows unveiled; from the second on, the colour is at full strength.
_FAINT, _FULL = 0.08, 0.45
_OPACITY = 0.68

_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)  # fmt: skip
_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def map_colours(levels: int = 256) -> np.ndarray:
    """The scale from probability 0 to 1: sRGB uint8 (levels, 3)."""
    at = np.linspace(0, 1, levels)
    lightness, chroma, hue = (np.interp(at, np.linspace(0, 1, len(_STOPS)), column) for column in _STOPS.T)
    a, b = chroma * np.cos(np.radians(hue)), chroma * np.sin(np.radians(hue))
    linear = np.clip((np.stack([lightness, a, b], axis=1) @ _LMS.T) ** 3 @ _RGB.T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(encoded * 255).astype(np.uint8)


def overlay(anomaly_map: np.ndarray) -> np.ndarray:
    """`anomaly_map` (H, W) float in [0, 1] as RGBA uint8 (H, W, 4), clear where nothing is suspected."""
    probability = np.clip(anomaly_map, 0, 1)
    colours = map_colours()[np.round(probability * 255).astype(int)]
    alpha = _OPACITY * np.clip((probability - _FAINT) / (_FULL - _FAINT), 0, 1)
    return np.dstack([colours, np.round(alpha * 255).astype(np.uint8)])


def legend_gradient(steps: int = 24, backdrop: int = 110) -> str:
    """CSS gradient of the scale as it looks over brain tissue of mean brightness, so that the legend matches the pictures."""
    rgba = overlay(np.linspace(0, 1, steps)[None])[0].astype(float)
    alpha = rgba[:, 3:] / 255
    seen = np.round(rgba[:, :3] * alpha + backdrop * (1 - alpha)).astype(int)
    return f"linear-gradient(90deg,{','.join('#' + bytes(colour).hex() for colour in seen.tolist())})"

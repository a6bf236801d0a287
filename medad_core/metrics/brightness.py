"""FLAIR brightness, the trivial detector every model has to beat.

One decision: it reads the very uint8 image the encoder sees, so a difference in score is never one of preprocessing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medad_core.metrics.arrays import BoolArray


def slice_brightness(image: npt.NDArray[np.uint8], brain: BoolArray) -> float:
    """99.5th percentile of the brain pixels of one slice, 0 without any.

    `image` uint8 (H, W), `brain` bool (H, W).
    """
    inside = image[brain.astype(bool)]
    return float(np.percentile(inside, 99.5)) if inside.size else 0.0

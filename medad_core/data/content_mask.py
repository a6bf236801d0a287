"""Statistics of a mask on its volume: how much of the brain it covers, where, and how bright it is there.

One decision: brightness is a rank among the brain's voxels, not a difference, so that no scaling and no outlier
matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_SAMPLE = 2000  # voxels of the brain, and of the mask, that are looked at: their shares are exact to about 0.01
_TAIL = 0.02  # of a slice's voxels at either end, which its extent leaves out: stray voxels


@dataclass(frozen=True)
class MaskStatistics:
    """Shares 0 to 1, but for mirrored_gain, -1 to 1. brightness and mirrored_gain are NaN without voxels to compare."""

    share: float
    outside: float
    span: float
    brightness: float
    mirrored_gain: float
    pixels_in_brain: int


def measure_mask(volume: np.ndarray, brain: np.ndarray, tumour: np.ndarray) -> MaskStatistics:
    """Measure `tumour` (S, H, W, bool, not empty) on `volume` and `brain` of its shape.

    share: of the brain's voxels, those in the mask. outside: of the mask's voxels, those outside the brain.
    span: extent of the mask by that of the brain, the smaller of rows and columns, median over slices with a mask.
    brightness: P(a voxel of the mask > one of the rest of the brain), the area under the ROC curve.
    mirrored_gain: the best brightness of the mask mirrored left to right, front to back and both, less its own.
    """
    size = int(np.count_nonzero(brain))
    total = int(np.count_nonzero(tumour))
    pixels = int(np.count_nonzero(tumour & brain))
    every = _sample(np.flatnonzero(brain))
    ranks = np.sort(volume.take(every))
    mask = _sample(np.flatnonzero(tumour))
    own = _brightness(volume, brain, mask, ranks, pixels / size)
    # A copy that lies mostly outside the brain cannot be where the lesion is.
    copies = [copy for copy in _mirrored(mask, brain.shape) if 2 * np.count_nonzero(brain.take(copy)) > copy.size]
    rivals = [_brightness(volume, brain, copy, ranks, pixels / size) for copy in copies]
    return MaskStatistics(
        share=pixels / size,
        outside=1 - pixels / total,
        span=_span(mask, every, brain.shape),
        brightness=own,
        mirrored_gain=max(rivals) - own if rivals else -1.0,
        pixels_in_brain=pixels,
    )


def _sample(indices: np.ndarray) -> np.ndarray:
    return indices[:: -(-indices.size // _SAMPLE)] if indices.size else indices


def _mirrored(indices: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Flat indices of the mask's copies: left to right, front to back, both."""
    rows, columns = shape[1:]
    column = indices % columns
    row = indices // columns % rows
    across = columns - 1 - 2 * column
    along = (rows - 1 - 2 * row) * columns
    return [indices + across, indices + along, indices + across + along]


def _brightness(volume: np.ndarray, brain: np.ndarray, indices: np.ndarray, ranks: np.ndarray, share: float) -> float:
    """Area under the ROC curve of the voxels at `indices` within the brain, whose `share` they are, against its rest.

    `ranks` is a sorted sample of the whole brain: P_brain = share / 2 + (1 - share) * P_rest.
    """
    values = volume.take(indices[brain.take(indices)])
    if values.size == 0 or share >= 1:
        return np.nan
    below = np.searchsorted(ranks, values, "left").mean() + np.searchsorted(ranks, values, "right").mean()
    return float(np.clip((below / 2 / ranks.size - share / 2) / (1 - share), 0, 1))


def _span(mask: np.ndarray, brain: np.ndarray, shape: tuple[int, ...]) -> float:
    """Extent of the mask by the brain's: the smaller of rows and columns, median over the slices with a mask."""
    slices = [array // (shape[1] * shape[2]) for array in (mask, brain)]
    spans = []
    for number in np.unique(slices[0]):
        here = [array[place == number] for array, place in zip((mask, brain), slices, strict=True)]
        rows = [_extent(array // shape[2] % shape[1]) for array in here]
        columns = [_extent(array % shape[2]) for array in here]
        spans.append(min(rows[0] / rows[1], columns[0] / columns[1], 1.0))
    return float(np.median(spans))


def _extent(places: np.ndarray) -> int:
    """Lines that voxels at these lines (n,) reach over, without a fiftieth of them at either end."""
    ordered = np.sort(places)
    tail = int(_TAIL * ordered.size)
    return int(ordered[-1 - tail] - ordered[tail] + 1)

"""Maps that tests learn from."""

from collections.abc import Sequence

import numpy as np

from medad_core.data.findings import TumourFinding, find
from medad_core.training.maps import Example, LabelledMaps

WHOLE = (0.0, 0.0, 1.0)  # the frame of a map of all of the picture


def empty_example(frame: Sequence[float] = WHOLE, grid: np.ndarray | None = None) -> Example:
    """A map without lesion."""
    grid = np.full((4, 16, 16), -24, np.float32) if grid is None else grid
    return Example(grid, np.array(frame, np.float32), 240.0, None, np.zeros((48, 48), np.float32))


def finding_at(row: float, column: float) -> TumourFinding:
    """What a mask says that is a blob at a place, given as shares of the picture."""
    mask = np.zeros((96, 96), bool)
    y, x = int(row * 96), int(column * 96)
    mask[y - 1 : y + 2, x - 1 : x + 2] = True
    return find(mask, np.ones_like(mask), 6.25)


def maps_of(examples: Sequence[Example]) -> LabelledMaps:
    """Examples as labelled maps."""
    return LabelledMaps(
        np.stack([example.grid for example in examples]).astype(np.float16),
        np.stack([example.frame for example in examples]),
        np.array([example.square_mm for example in examples]),
        tuple(example.finding for example in examples),
        np.stack([example.cover for example in examples]),
    )

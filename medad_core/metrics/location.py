"""Distance between two cells of the 3 × 3 location grid.

One decision: cells are compared by their place in the row-major list, so that a wrong cell next to the true one can
be distinguished from a wrong cell on the other side of the brain.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from medad_core.data.location import CELLS
from medad_core.metrics.arrays import FloatArray

_INDEX: dict[str | None, int] = {cell: index for index, cell in enumerate(CELLS)}


def cell_steps(answered: Iterable[str | None], true: Iterable[str | None]) -> FloatArray:
    """King's moves between answered and true cells: 0 exact, 1 neighbouring, 2 far, NaN where either is absent.

    Returns float64 (N,). A name that is no cell counts as absent.
    """
    rows = [(_INDEX.get(a, -1), _INDEX.get(b, -1)) for a, b in zip(answered, true, strict=True)]
    pairs = np.array(rows, int).reshape(-1, 2)
    steps = np.abs(np.stack(np.divmod(pairs, 3))).astype(float)  # (row/col, N, answered/true)
    moves = np.abs(steps[..., 0] - steps[..., 1]).max(axis=0)
    return np.where((pairs < 0).any(axis=1), np.nan, moves)

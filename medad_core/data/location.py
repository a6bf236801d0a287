"""Where in the picture, and where in the patient: the 3×3 grid the answers speak of.

One decision: a place is one of nine cells, cut at 1/3 and 2/3 of both axes of the picture. The picture is the slice
centred on a square, as the encoder sees it, so an oblong slice is taught, answered and judged on one and the same grid.
It is radiological: its left is the patient's right. See medad_core/README.md.
"""

from __future__ import annotations

import numpy as np

CELLS = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
_ROWS = ("anterior", "", "posterior")
_COLUMNS = ("right", "", "left")


def cell_of(row: float, column: float, height: int, width: int) -> str:
    """The cell of a point given in pixels of the displayed slice (height, width)."""
    down, across = square_share(row, column, height, width)
    cell_row = min(2, int(3 * down))
    cell_column = min(2, int(3 * across))
    return CELLS[3 * cell_row + cell_column]


def square_share(row: float, column: float, height: int, width: int) -> tuple[float, float]:
    """A point in pixels of the displayed slice as shares [0, 1) of the square that the slice is centred on."""
    side = max(height, width)
    return (row + (side - height) // 2) / side, (column + (side - width) // 2) / side


def true_cell(mask: np.ndarray) -> str | None:
    """The cell of the centroid of a bool tumour mask (H, W) in display orientation; None where the mask is empty."""
    rows, columns = np.nonzero(mask)
    if rows.size == 0:
        return None
    return cell_of(rows.mean() + 0.5, columns.mean() + 0.5, *mask.shape)


def anatomical(cell: str) -> str:
    """A cell of the radiological picture in the patient's own terms: `top left` is `right anterior`."""
    row, column = divmod(CELLS.index(cell), 3)
    words = [word for word in (_COLUMNS[column], _ROWS[row]) if word]
    return " ".join(words) or "central"

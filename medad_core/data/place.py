"""Where the pictures of a case lie: in the patient, and in the file that they were made of.

One decision: it is noted when the file is read, because the file may be gone when results are computed.
"""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

Numbers = tuple[float, float, float, float, float, float, float, float, float, float, float, float]


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file's `shape` (X, Y, Z) and `affine`, the pictures' `to_ras`, and whether the grid is that of SRI24.

    `affine` brings stored indices to RAS+ mm, `to_ras` (slice, row, column), with the slice's number in the volume.
    Both are the upper three rows of a matrix, row by row. `slices` are those of the volume.
    """

    shape: tuple[int, int, int]
    affine: Numbers
    to_ras: Numbers
    slices: int
    sri24: bool

    @property
    def stored(self) -> npt.NDArray[np.float64]:
        """`affine` as (4, 4)."""
        return np.vstack([np.reshape(self.affine, (3, 4)), [0, 0, 0, 1]])

    @property
    def matrix(self) -> npt.NDArray[np.float64]:
        """`to_ras` as (4, 4)."""
        return np.vstack([np.reshape(self.to_ras, (3, 4)), [0, 0, 0, 1]])


def numbers_of(matrix: npt.NDArray[np.float64]) -> Numbers:
    """The upper three rows of a matrix (4, 4), row by row."""
    return tuple(float(value) for value in matrix[:3].ravel())  # type: ignore[return-value]

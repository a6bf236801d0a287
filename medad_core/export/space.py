"""From pictures back to the voxels of the file that they were made of.

One decision: a voxel gets the value of the picture at its own place, by the affines alone. Each axis of a picture is
one of the file's, in another order, reversed, or with pixels of another length. Where pictures have the file's own
pixels, every value lands on one voxel and is not touched. Where they were brought to 1 mm, values are interpolated
linearly within a slice, never between slices. Voxels that no picture shows are 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from medad_core.data.place import Place

FloatArray = npt.NDArray[np.float32]
_WHOLE = 0.01  # of a pixel over a whole axis: affines are stored in 32 bits


def to_file(pictures: FloatArray, first_slice: int, place: Place) -> FloatArray:
    """Pictures (N, H, W) of the slices from `first_slice` on to the file's array (X, Y, Z)."""
    to_picture = np.linalg.solve(place.matrix, place.stored)
    to_picture[0, 3] -= first_slice
    axes = np.abs(to_picture[:3, :3]).argmax(axis=1)  # the file's axis of each of the picture's
    slices, rows, columns = (
        to_picture[axis, stored] * np.arange(place.shape[stored]) + to_picture[axis, 3]
        for axis, stored in enumerate(axes)
    )
    numbers = np.round(slices).astype(int)  # slices are the file's own
    inside = np.flatnonzero((numbers >= 0) & (numbers < len(pictures)))
    over, across = _weights(rows, pictures.shape[1]), _weights(columns, pictures.shape[2])
    out = np.zeros((len(slices), len(rows), len(columns)), np.float32)
    for at in inside:
        out[at] = (across @ (over @ pictures[numbers[at]]).T).T
    return np.ascontiguousarray(out.transpose(np.argsort(axes)))


def _weights(places: npt.NDArray[np.float64], size: int) -> sparse.csr_array:
    """The share of each of `size` pixels at `places` along their axis: (len(places), size), float32.

    All shares are 0 at a place more than half a pixel beyond the outermost ones.
    """
    whole = np.round(places)
    if np.abs(places - whole).max() < _WHOLE:
        places = whole
    shown = np.flatnonzero((places >= -0.5) & (places <= size - 0.5))
    at = places[shown].clip(0, size - 1)
    low = np.floor(at).astype(int)
    share = (at - low).astype(np.float32)
    rows = np.concatenate([shown, shown])
    columns = np.concatenate([low, np.minimum(low + 1, size - 1)])
    return sparse.csr_array((np.concatenate([1 - share, share]), (rows, columns)), shape=(len(places), size))

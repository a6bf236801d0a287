"""The volumes of a case as the viewer of its page loads them: slices, map and outlines as NIfTI within a script.

One decision: the pictures that were screened are shown, not resampled, with an affine that says where they lie; so the
three planes and their letters are true, and a case has only the slices that were screened. Probabilities keep steps of
1/255.
"""

from __future__ import annotations

import base64
import gzip
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medad_core.data.place import Place

ByteArray = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]
_CROSS = ndimage.generate_binary_structure(2, 1)[None]  # the pixels beside one, in its slice only


@dataclass(frozen=True)
class Volumes:
    """Gzipped NIfTI in base64, all of the same size. `expert` is None without a mask.

    `peak` is the voxel (x, y, z) of the map's maximum in the slice to look at first.
    """

    flair: str
    map: str
    found: str
    expert: str | None
    peak: tuple[int, int, int]


def case_volumes(
    images: ByteArray,
    maps: npt.NDArray[np.float32],
    masks: BoolArray | None,
    threshold: float,
    first_slice: int,
    look_at: int,
    to_ras: npt.NDArray[np.float64],
) -> Volumes:
    """The volumes of the slices from `first_slice` on: pictures, maps in [0, 1] and masks, (N, H, W) each.

    Outlines are those of the maps above `threshold` and of the masks. `to_ras` (4, 4) brings (slice, row, column) to
    RAS+ mm, as `Place.matrix` does.
    """
    _, height, width = images.shape
    affine = to_ras @ np.array([[0, 0, 1, first_slice], [0, -1, 0, height - 1], [-1, 0, 0, width - 1], [0, 0, 0, 1]])
    probabilities = np.round(maps * 255).astype(np.uint8)
    at = look_at - first_slice
    row, column = np.unravel_index(int(maps[at].argmax()), (height, width))
    return Volumes(
        flair=_encoded(images, affine),
        map=_encoded(probabilities, affine, slope=1 / 255),
        found=_encoded(outline(maps >= threshold), affine),
        expert=None if masks is None else _encoded(outline(masks), affine),
        peak=(width - 1 - int(column), height - 1 - int(row), at),
    )


def picture_axes(spacing_mm: tuple[float, float, float], place: Place | None) -> npt.NDArray[np.float64]:
    """(slice, row, column) to RAS+ mm, (4, 4), with `spacing_mm` of (row, column, slice).

    Without a place, which runs of earlier versions did not note, the pictures' own axes: slices run to superior, rows
    to posterior, columns to the left, from an arbitrary origin.
    """
    if place is not None:
        return place.matrix
    row, column, slice_mm = spacing_mm
    return np.array([[0, 0, -column, 0], [0, -row, 0, 0], [slice_mm, 0, 0, 0], [0, 0, 0, 1]], dtype=float)


def outline(masks: BoolArray) -> ByteArray:
    """The pixels of masks (N, H, W) that have a neighbour in their slice outside of them: uint8, 255 or 0."""
    inside = ndimage.binary_erosion(masks, _CROSS, border_value=0)
    return np.where(masks & ~inside, 255, 0).astype(np.uint8)


def _encoded(pictures: ByteArray, affine: npt.NDArray[np.float64], slope: float = 1) -> str:
    """Pictures (N, H, W) as a volume whose axes run to the right, to anterior and to superior, as far as they can."""
    image = nib.Nifti1Image(np.ascontiguousarray(pictures[:, ::-1, ::-1].transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, 0)
    # The same volume always gives the same text.
    return base64.b64encode(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)).decode("ascii")

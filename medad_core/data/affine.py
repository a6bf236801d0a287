"""Where the voxels of a NIfTI file lie: its sform or its qform.

One decision: the sform counts before the qform, as nibabel, FSL and SPM take them. What every reader mends is mended
here too, what readers understand in different ways is refused. The rules are those of
https://nifti.nimh.nih.gov/nifti-1 and of `nibabel.load`:

* A code of 0 means that the affine is not set. Codes above 5 are not defined; nibabel takes them for 0.
* qfac (`pixdim[0]`) is -1 or 1, and anything else counts as 1. Only negative values other than -1 are refused where
  the qform counts: nibabel takes them for 1, the reference library for -1.
* Negative voxel edges in the qform lose their sign.
* A quaternion that rounding made longer than 1 is shortened; one that is longer than that is no rotation.
"""

from __future__ import annotations

import itertools
from typing import Literal

import nibabel as nib
import numpy as np

Source = Literal["sform", "qform"]

_CODES = range(1, 6)  # scanner, aligned, Talairach, MNI, other template
_LARGEST_DISTANCE_MM = 1.0
_LARGEST_ANGLE = 1.0  # degrees


def read_affine(header: nib.Nifti1Header, shape: tuple[int, ...]) -> tuple[np.ndarray, Source | None]:
    """The affine (4, 4) float64 from stored indices to RAS+ mm, and where it is from.

    None means that the header gives no orientation; the affine then is nibabel's from the voxel edges alone. `shape` is
    the stored (X, Y, Z). Raises ValueError with a reason and a way out where the two affines disagree by more than 1 mm
    at a corner or 1 degree, and where a qform that counts is no affine.
    """
    sform_code = int(header["sform_code"])
    qform_code = int(header["qform_code"])
    if sform_code in _CODES:
        sform = np.asarray(header.get_sform(), dtype=np.float64)
        if qform_code > 0:
            _require_agreement(sform, header, shape)
        return sform, "sform"
    if qform_code in _CODES:
        qform = _qform(header, shape)
        if sform_code > 0:  # a code that nibabel does not know and others accept
            _compare(np.asarray(header.get_sform(), dtype=np.float64), qform, shape)
        return qform, "qform"
    return np.asarray(header.get_base_affine(), dtype=np.float64), None


def corner_indices(shape: tuple[int, ...]) -> np.ndarray:
    """(4, 8): the indices of the corner voxels of an array of three axes, and a row of ones."""
    corners = itertools.product(*((0, size - 1) for size in shape))
    return np.array([(*corner, 1) for corner in corners], dtype=np.float64).T


def _qform(header: nib.Nifti1Header, shape: tuple[int, ...]) -> np.ndarray:
    mended = header.copy()
    pixdim = mended["pixdim"]
    if pixdim[0] < 0 and pixdim[0] != -1:
        raise ValueError(
            f"its qfac (pixdim[0]) is {float(pixdim[0]):g}, which readers take for 1 or for -1; set it to one of them"
        )
    if pixdim[0] != -1:
        pixdim[0] = 1
    pixdim[1:4] = np.abs(pixdim[1:4])
    for axis, size in enumerate(shape, start=1):
        if pixdim[axis] == 0 and size == 1:  # a single voxel may be of any size; nibabel makes it 1 mm
            pixdim[axis] = 1
    try:
        return np.asarray(mended.get_qform(), dtype=np.float64)
    except ValueError as error:
        raise ValueError(
            "its qform is no rotation (its quaternion is longer than 1); export it again with a valid header"
        ) from error


def _require_agreement(sform: np.ndarray, header: nib.Nifti1Header, shape: tuple[int, ...]) -> None:
    try:
        qform = _qform(header, shape)
    except ValueError:  # it places the voxels nowhere, so every reader takes the sform
        return
    _compare(sform, qform, shape)


def _compare(sform: np.ndarray, qform: np.ndarray, shape: tuple[int, ...]) -> None:
    if not (np.isfinite(sform).all() and np.isfinite(qform).all()):
        return  # the one that counts is refused by its orientation
    distance = float(np.linalg.norm(((sform - qform) @ corner_indices(shape))[:3], axis=0).max())
    angle = _largest_angle(sform, qform)
    if distance > _LARGEST_DISTANCE_MM or angle > _LARGEST_ANGLE:
        raise ValueError(
            f"its sform ({_describe(sform)}) and its qform ({_describe(qform)}) disagree by {distance:.1f} mm at a "
            f"corner and {angle:.1f} degrees; make them equal, or set the code of the wrong one to 0"
        )


def _largest_angle(one: np.ndarray, other: np.ndarray) -> float:
    """Degrees between the same axes of two affines; 0 where an axis has no length."""
    lengths = np.linalg.norm(one[:3, :3], axis=0) * np.linalg.norm(other[:3, :3], axis=0)
    products = (one[:3, :3] * other[:3, :3]).sum(axis=0)
    cosines = np.divide(products, lengths, out=np.ones(3), where=lengths > 0)
    return float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())


def _describe(affine: np.ndarray) -> str:
    codes = "".join(code or "?" for code in nib.aff2axcodes(affine))
    edges = " x ".join(f"{edge:.4g}" for edge in np.linalg.norm(affine[:3, :3], axis=0))
    origin = ", ".join(f"{value:.1f}" for value in affine[:3, 3])
    return f"{codes}, {edges} mm, origin {origin}"

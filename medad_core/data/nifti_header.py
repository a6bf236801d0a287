"""What a NIfTI file says of itself, and how its array becomes a picture.

One decision: picture orientation is (S, P, L): slices inferior to superior, rows anterior to posterior, columns from
the patient's right to the left, which is the radiological convention. The header follows
https://nifti.nimh.nih.gov/nifti-1.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from medad_core.data.affine import Source, read_affine
from medad_core.data.inflate import EXPORT_AGAIN
from medad_core.errors import CaseError, TruncatedError

HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
_LAST_OFFSET = 1 << 30  # bytes before the voxels; extensions of headers have fewer
_LARGEST_VOXEL = 8  # bytes; the long doubles of one machine are not those of another


@dataclass(frozen=True)
class Header:
    """What the file says of itself.

    `shape` is the stored (X, Y, Z); `offset` is the first voxel's byte. `affine` (4, 4) brings stored indices to RAS+
    mm; it is the file's `affine_source`, None where the header gives no orientation. `order` and `flips` bring a stored
    array to (S, P, L): axes in this order, reversed where True. `stored_orientation` is the axes' codes, such as "LPS".
    `description` is what the program that wrote the file says of it.
    """

    shape: tuple[int, int, int]
    channels: int
    dtype: np.dtype
    offset: int
    slope: float
    inter: float
    affine: np.ndarray
    affine_source: Source | None
    stored_orientation: str
    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    description: bytes

    @property
    def has_orientation(self) -> bool:
        """Whether left can be known from right."""
        return self.affine_source is not None

    @property
    def file_bytes(self) -> int:
        """Length of a whole file before compression."""
        return self.offset + math.prod(self.shape) * self.channels * self.dtype.itemsize

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        return tuple(self.shape[axis] for axis in self.order)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """(row, column, slice) distances in mm."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        slices, rows, columns = (float(lengths[axis]) for axis in self.order)
        return rows, columns, slices

    @property
    def picture_affine(self) -> np.ndarray:
        """(4, 4): (slice, row, column, 1) of the picture to RAS+ mm."""
        steps = []
        origin = self.affine[:3, 3].copy()
        for axis, flip in zip(self.order, self.flips, strict=True):
            step = self.affine[:3, axis]
            if flip:
                origin = origin + step * (self.shape[axis] - 1)
                step = -step
            steps.append(step)
        affine = np.eye(4)
        affine[:3, :3] = np.stack(steps, axis=1)
        affine[:3, 3] = origin
        return affine


def parse_header(content: bytes, case_id: str, name: str) -> Header:
    """The header at the start of a file's content, of which `HEADER_BYTES` are enough.

    Raises TruncatedError for content shorter than a header, CaseError for one that is no NIfTI header, or one of voxels
    that are no numbers, of a shape that is no volume, without an orientation that can be computed, or with two that
    disagree.
    """
    if len(content) < nib.Nifti1Header.sizeof_hdr:
        raise TruncatedError(case_id, f"{name}: truncated within its header ({len(content)} bytes); {EXPORT_AGAIN}")
    is_nifti2 = content[:4] in (struct.pack("<i", 540), struct.pack(">i", 540))
    kind = nib.Nifti2Header if is_nifti2 else nib.Nifti1Header
    try:
        header = kind(content[: kind.sizeof_hdr], check=False)  # extensions stay unread: only their length matters
        stored = _without_trailing_ones(header.get_data_shape())
        dtype = header.get_data_dtype()
        offset = max(int(header["vox_offset"]), header.sizeof_hdr + 4)
        if offset > _LAST_OFFSET:
            raise ValueError(f"its voxels begin at byte {offset}")
    except Exception as error:  # nibabel raises many kinds on bytes that are no header; each means the same here
        raise CaseError(case_id, f"{name}: not a NIfTI file ({error}); give .nii or .nii.gz") from error
    if header["magic"].item()[:3] not in (b"n+1", b"n+2"):
        raise CaseError(case_id, f"{name}: not a NIfTI file (no n+1 mark in its header); give .nii or .nii.gz")
    if dtype.fields is not None or dtype.kind not in "iuf" or dtype.itemsize > _LARGEST_VOXEL:
        raise CaseError(case_id, f"{name}: voxels of type {dtype}; give whole or real numbers of at most 64 bits")
    if len(stored) not in (3, 4) or min(stored) < 1:
        raise CaseError(case_id, f"{name}: wrong shape {tuple(stored)}; give one 3-D volume")
    slope, inter = _scaling(header)
    shape = tuple(int(n) for n in stored[:3])
    try:
        affine, source = read_affine(header, shape)
    except ValueError as error:
        raise CaseError(case_id, f"{name}: {error}") from error
    order, flips, codes = _orientation(affine, case_id, name)
    return Header(
        shape=shape,
        channels=int(stored[3]) if len(stored) == 4 else 1,
        dtype=dtype,
        offset=offset,
        slope=slope,
        inter=inter,
        affine=affine,
        affine_source=source,
        stored_orientation=codes,
        order=order,
        flips=flips,
        description=header["descrip"].tobytes(),
    )


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without axes of one behind the third: a volume that is written with more axes is still one volume."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _scaling(header: nib.Nifti1Header) -> tuple[float, float]:
    """Slope and intercept of the stored values; by the standard a slope of 0 means that they are unscaled."""
    slope = float(header["scl_slope"])
    inter = float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0:
        return 1.0, 0.0
    return slope, inter if np.isfinite(inter) else 0.0


def _orientation(affine: np.ndarray, case_id: str, name: str) -> tuple[tuple, tuple, str]:
    """Axes and flips that turn a stored array into (S, P, L), and the stored axes' codes such as "LPS"."""
    axes = nib.io_orientation(affine) if np.isfinite(affine).all() else np.full((3, 2), np.nan)
    if not np.isfinite(axes).all():
        raise CaseError(
            case_id, f"{name}: its affine does not give an orientation; export it again with a valid header"
        )
    axis_of = {int(world): stored for stored, (world, _) in enumerate(axes)}
    sign_of = {int(world): sign for world, sign in axes}
    order = (axis_of[2], axis_of[1], axis_of[0])
    flips = (sign_of[2] < 0, sign_of[1] > 0, sign_of[0] > 0)
    return order, flips, "".join(nib.orientations.ornt2axcodes(axes))

"""What the grid of a volume means for its pictures: whether it makes any, and whether it is SRI24.

One decision: everything here is read from the header alone, so a grid can be judged before a voxel is read.
"""

from __future__ import annotations

import numpy as np

from medad_core.data.cases import Levels
from medad_core.data.nifti_header import Header
from medad_core.errors import CaseError

SRI24_SHAPE = (155, 240, 240)  # slices, rows, columns: the grid of BraTS (Rohlfing et al. 2010, SRI24 atlas)
# An edge within this of 1 mm counts as 1 mm. A picture of 240 pixels is then less than half a pixel longer or shorter
# than it would be at 1 mm, so no pixel of it would lie elsewhere. Headers store edges to 1e-7.
ONE_MM_TOLERANCE = 0.002
LONGEST_PIXEL_MM = 2.0
SHORTEST_PIXEL_MM = 0.1  # no scanner makes smaller ones of a head: such a header is in metres, or damaged
_LARGEST_TILT = 1.0  # degrees


def require_picture(header: Header, case_id: str, name: str) -> None:
    """Raise CaseError where a volume's axial slices make no pictures that can be trusted.

    Such a volume has no orientation, or pixels longer than 2 mm or shorter than 0.1 mm in one direction.
    """
    if not header.has_orientation:
        raise CaseError(
            case_id,
            f"{name}: no orientation in its header (neither its sform nor its qform has a valid code), "
            "so left and right cannot be told apart; export it again with one",
        )
    rows, columns, slices = header.spacing_mm
    spacing = f"{rows:.3g} x {columns:.3g} mm (slices {slices:.3g} mm apart)"
    # The margin is for edges that a header stores in 32 bits.
    if max(rows, columns) > LONGEST_PIXEL_MM * (1 + 1e-4):
        raise CaseError(
            case_id,
            f"{name}: its axial slices have pixels of {spacing}, longer than {LONGEST_PIXEL_MM:g} mm; "
            "give an axial or isotropic volume, or resample it to 1 mm",
        )
    if min(rows, columns) < SHORTEST_PIXEL_MM:
        raise CaseError(
            case_id,
            f"{name}: its axial slices have pixels of {spacing}, shorter than {SHORTEST_PIXEL_MM:g} mm; "
            "check the units of its header, which must be mm",
        )


def is_one_mm(edge: float) -> bool:
    """Whether an edge in mm counts as 1 mm."""
    return abs(edge - 1) <= ONE_MM_TOLERANCE


def is_sri24(header: Header) -> bool:
    """Whether a volume lies on the grid of SRI24: 240 x 240 x 155 voxels of 1 mm, axial, stored in any order."""
    axes = header.affine[:3, :3] / np.linalg.norm(header.affine[:3, :3], axis=0)
    upright = bool((np.abs(axes).max(axis=0) >= np.cos(np.radians(_LARGEST_TILT))).all())
    return (
        header.has_orientation
        and header.picture_shape == SRI24_SHAPE
        and all(is_one_mm(edge) for edge in header.spacing_mm)
        and upright
    )


def levels_for(header: Header) -> Levels:
    """How a range of slices is meant for a volume of this grid; see `Case.levels`."""
    return "index" if is_sri24(header) else "brain"

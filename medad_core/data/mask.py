"""A mask on its volume's grid.

One decision: a mask lies where its affine places it, in mm. A grid that is the volume's within half a voxel is the
volume's. A grid that is a part of it, or sticks out of it, by whole voxels (a crop, a pad, a shift) is moved there
without interpolation. Nothing else is, because labels would have to be guessed between voxels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medad_core.data.affine import corner_indices
from medad_core.data.cases import Case
from medad_core.data.labels import find_tumour
from medad_core.data.nifti import NiftiFile, open_nifti
from medad_core.data.nifti_header import Header
from medad_core.errors import CaseError

# Of the volume's smallest voxel edge. At half an edge two voxels are equally near, so exactly half is too far.
_ALIGNED = 0.499
# A crop or pad is off by the header's rounding only. What is off by more was registered or resampled.
_WHOLE = 0.05
_WAY_OUT = "give a mask on the volume's grid"


def read_mask(case: Case, volume: Header, wanted: range, max_gib: float) -> np.ndarray | None:
    """Tumour in the `wanted` slices of a volume as bool (N, H, W), None for a case without a mask.

    Raises CaseError for a mask that does not lie on the volume's grid, one whose tumour the volume or the mask's own
    edge cuts off, and values that are no labels.
    """
    if case.mask is None:
        return None
    file = open_nifti(case.case_id, case.mask, max_gib)
    if not file.header.has_orientation:  # a mask that says nothing of where it lies is on the volume's own array
        _require_shape(file, volume, file.header.shape == volume.shape)
        file = replace(file, header=_oriented_like(file.header, volume))
    if _is_aligned(file.header, volume):
        return find_tumour(file, file.slices(wanted.start, wanted.stop - 1), case.tumour_labels)
    shift = _whole_shift(file, volume)
    tumour = find_tumour(file, file.slices(0, file.header.picture_shape[0] - 1), case.tumour_labels)
    return _moved(file, volume, tumour, shift)[wanted.start : wanted.stop]


def _oriented_like(mask: Header, volume: Header) -> Header:
    return replace(
        mask,
        affine=volume.affine,
        affine_source=volume.affine_source,
        order=volume.order,
        flips=volume.flips,
        stored_orientation=volume.stored_orientation,
    )


def _require_shape(file: NiftiFile, volume: Header, fits: bool) -> None:
    if not fits:
        raise CaseError(
            file.case_id, f"{file.name}: mask of shape {file.header.shape} for a volume of {volume.shape}; {_WAY_OUT}"
        )


def _distance(mask: Header, volume: Header, shift: np.ndarray) -> float:
    """mm from the mask's corners to the volume's voxels whose index is `shift` (slice, row, column) higher."""
    corners = corner_indices(mask.picture_shape)
    moved = corners + np.append(shift, 0)[:, None]
    return float(np.linalg.norm((mask.picture_affine @ corners - volume.picture_affine @ moved)[:3], axis=0).max())


def _is_aligned(mask: Header, volume: Header) -> bool:
    if mask.picture_shape != volume.picture_shape:
        return False
    return _distance(mask, volume, np.zeros(3)) <= _ALIGNED * min(volume.spacing_mm)


def _whole_shift(file: NiftiFile, volume: Header) -> np.ndarray:
    """(3,) int: what to add to an index of the mask's picture to have the volume's; raises where it is not whole."""
    mask = file.header
    offset = np.linalg.solve(volume.picture_affine, mask.picture_affine[:, 3])[:3]
    shift = np.rint(offset).astype(int)
    if _distance(mask, volume, shift) <= _WHOLE * min(volume.spacing_mm):
        return shift
    _require_shape(file, volume, mask.picture_shape == volume.picture_shape)
    raise CaseError(file.case_id, f"{file.name}: {_elsewhere(mask, volume)}; {_WAY_OUT}")


def _elsewhere(mask: Header, volume: Header) -> str:
    return f"the mask's affine places it {_distance(mask, volume, np.zeros(3)):.3g} mm away from the volume"


def _moved(file: NiftiFile, volume: Header, tumour: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Tumour on the volume's grid. Raises where the volume's edge cuts it off, and where the mask's own edge may do."""
    inside = np.zeros(volume.picture_shape, bool)
    target = []
    source = []
    for axis, (move, size, whole) in enumerate(zip(shift.tolist(), tumour.shape, volume.picture_shape, strict=True)):
        low = max(0, move)
        high = max(low, min(whole, move + size))
        target.append(slice(low, high))
        source.append(slice(low - move, high - move))
        ends = [0] if move > 0 else []
        ends += [size - 1] if move + size < whole else []
        if tumour.take(ends, axis).any():
            raise CaseError(
                file.case_id,
                f"{file.name}: the mask covers a part of the volume, and tumour lies on that part's edge, "
                f"so more of it may lie outside; {_WAY_OUT}",
            )
    part = tumour[tuple(source)]
    lost = int(np.count_nonzero(tumour)) - int(np.count_nonzero(part))
    if lost or part.size == 0:
        raise CaseError(
            file.case_id, f"{file.name}: {_elsewhere(file.header, volume)}, {lost} tumour voxels outside it; {_WAY_OUT}"
        )
    inside[tuple(target)] = part
    return inside

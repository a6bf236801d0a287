"""One case in, upright 8-bit axial slices out.

One decision: everything that could make a picture wrong without being seen (no orientation in the header, a mask that
lies elsewhere, NaN, an unstripped skull) rejects the case with its reason; nothing is repaired by guessing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from medad_core.data.cases import Case, VolumeRef
from medad_core.data.intensity import find_background, find_landmarks, to_uint8
from medad_core.data.nifti import Header, NiftiFile, open_nifti
from medad_core.errors import CaseError

if TYPE_CHECKING:
    from medad_core.config import DataSettings, ScalingSettings

DISPLAY_ORIENTATION = "PL"  # rows run to posterior, columns to the patient's left: anterior up, left on the right


@dataclass(frozen=True)
class CaseSlices:
    """Slices of one case as pictures: row 0 is anterior, column 0 is the patient's right (radiological convention).

    slice_index (N,) int32: 0-based, counted from inferior to superior. images (N, H, W) uint8. brain (N, H, W) bool.
    masks (N, H, W) bool (True is tumour) or None where unlabelled. spacing_mm is (row, column, slice).
    stored_orientation is the file's ("LPS", "RAS", …).
    """

    case_id: str
    slice_index: np.ndarray
    images: np.ndarray
    brain: np.ndarray
    masks: np.ndarray | None
    spacing_mm: tuple[float, float, float]
    stored_orientation: str


def read_slices(case: Case, settings: DataSettings) -> CaseSlices:
    """Read slices settings.first_slice..last_slice (inclusive) of `settings.modality`, scaled by `settings.scaling`.

    Raises CaseError for a file that cannot be used, a volume that does not reach the range, an empty brain, values that
    are not finite, and a mask of another grid or with other than whole labels >= 0; InputError for a filesystem that
    failed in a way that may pass.
    """
    file = open_nifti(case.case_id, case.volumes[settings.modality])
    header = file.header
    if not header.has_orientation:
        raise CaseError(
            case.case_id,
            f"{file.name}: no orientation in its header (sform and qform codes are 0), "
            "left cannot be known from right; export it again with one",
        )
    first = settings.first_slice
    last = settings.last_slice
    reference = _check_range(file, settings)
    start = min(first, reference.start)
    stop = max(last + 1, reference.stop)
    block = _finite_block(file, start, stop)
    brain = _brain(file, block)
    wanted = slice(first - start, last + 1 - start)
    within = slice(reference.start - start, reference.stop - start)
    images = _scale(file, block, brain, within, wanted, settings.scaling)
    return CaseSlices(
        case_id=case.case_id,
        slice_index=np.arange(first, last + 1, dtype=np.int32),
        images=images,
        brain=np.ascontiguousarray(brain[wanted]),
        masks=None if case.mask is None else _read_mask(case, case.mask, header, first, last),
        spacing_mm=header.spacing_mm,
        stored_orientation=header.stored_orientation,
    )


def _check_range(file: NiftiFile, settings: DataSettings) -> range:
    """The reference slices that the volume has; raises where it lacks a slice of the range or all of the reference."""
    count = file.header.picture_shape[0]
    if settings.last_slice >= count:
        raise CaseError(
            file.case_id,
            f"{file.name}: has axial slices 0 to {count - 1}, not all of {settings.first_slice} to "
            f"{settings.last_slice}; set data.first_slice and data.last_slice to what it has",
        )
    scaling = settings.scaling
    reference = range(scaling.reference_first, min(scaling.reference_last + 1, count))
    if not reference:
        raise CaseError(
            file.case_id,
            f"{file.name}: has axial slices 0 to {count - 1}, none of the scaling's reference "
            f"{scaling.reference_first} to {scaling.reference_last}; "
            "set data.scaling.reference_first and data.scaling.reference_last",
        )
    return reference


def _finite_block(file: NiftiFile, start: int, stop: int) -> np.ndarray:
    """Slices start..stop - 1, bright where the scanner's are; raises where a value is not finite."""
    block = file.slices(start, stop - 1)
    # A sum is finite only where every term is (float64 does not overflow on float32), and needs no array of flags.
    if block.dtype.kind == "f" and not np.isfinite(block.sum(dtype=np.float64)):
        bad = int(block.size - np.isfinite(block).sum())
        raise CaseError(
            file.case_id,
            f"{file.name}: {bad} voxels of slices {start} to {stop - 1} are NaN or infinite; "
            "repair or leave out the volume",
        )
    # A negative slope turns bright into dark; any other slope cancels out in the scaling.
    return -block.astype(np.float32) if file.header.slope < 0 else block


def _brain(file: NiftiFile, block: np.ndarray) -> np.ndarray:
    """Bool of the block's shape: all that is not the constant around the brain."""
    background = find_background(block)
    if background is None:
        raise CaseError(
            file.case_id, f"{file.name}: no constant background around the brain; give a skull-stripped volume"
        )
    return block != background


def _scale(
    file: NiftiFile, block: np.ndarray, brain: np.ndarray, within: slice, wanted: slice, scaling: ScalingSettings
) -> np.ndarray:
    """The `wanted` slices of a block as uint8, by landmarks of those `within` the reference."""
    values = block[within][brain[within]]
    if values.size == 0:
        raise CaseError(
            file.case_id,
            f"{file.name}: empty brain, every voxel of the reference slices is background; check the volume",
        )
    landmarks = find_landmarks(values, scaling)
    if landmarks is None:
        raise CaseError(file.case_id, f"{file.name}: no contrast inside the brain; check the volume")
    return to_uint8(block[wanted], brain[wanted], landmarks)


def _read_mask(case: Case, ref: VolumeRef, volume: Header, first: int, last: int) -> np.ndarray:
    """Tumour (last - first + 1, H, W) bool: every label above 0 (BraTS 2021 has 1, 2, 4; 2023 has 1, 2, 3)."""
    file = open_nifti(case.case_id, ref)
    if not file.header.has_orientation:  # a mask that says nothing of where it lies is on the volume's own array
        file = replace(file, header=_oriented_like(file.header, volume))
    if file.header.picture_shape != volume.picture_shape:
        raise CaseError(
            case.case_id,
            f"{file.name}: mask of shape {file.header.shape} for a volume of {volume.shape}; "
            "give a mask on the volume's grid",
        )
    shift_mm = float(np.abs(_corners(file.header) - _corners(volume)).max())
    if shift_mm > max(volume.spacing_mm):
        raise CaseError(
            case.case_id,
            f"{file.name}: the mask's affine places it {shift_mm:.1f} mm away from the volume; "
            "give a mask on the volume's grid",
        )
    labels = file.slices(first, last)
    if file.header.slope != 1 or file.header.inter != 0:
        labels = labels.astype(np.float32) * file.header.slope + file.header.inter
    tumour = labels > 0
    _check_labels(file, labels, tumour)
    return tumour


def _check_labels(file: NiftiFile, labels: np.ndarray, tumour: np.ndarray) -> None:
    if labels.dtype.kind == "u":
        return
    # `not >=` is also true for NaN. Only values above 0 can be fractions, and they are few.
    if not labels.min() >= 0 or (labels.dtype.kind == "f" and not _whole(labels[tumour])):
        raise CaseError(
            file.case_id,
            f"{file.name}: the mask has values that are no labels (negative, fractions or NaN); "
            "give whole numbers, 0 for background",
        )


def _whole(values: np.ndarray) -> bool:
    return bool((values == np.rint(values)).all())


def _oriented_like(mask: Header, volume: Header) -> Header:
    return replace(
        mask, affine=volume.affine, order=volume.order, flips=volume.flips, stored_orientation=volume.stored_orientation
    )


def _corners(header: Header) -> np.ndarray:
    """(8, 3) mm: where the picture's corners lie in the patient."""
    ends = [(0, size - 1) for size in header.picture_shape]
    grid = np.array(np.meshgrid(*ends, [1], indexing="ij")).reshape(4, -1)
    return (header.picture_affine @ grid)[:3].T

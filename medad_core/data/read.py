"""One case in, upright 8-bit axial slices out.

One decision: everything that could make a picture wrong without being seen (no orientation in the header, a mask that
lies elsewhere, NaN, an unstripped skull) rejects the case with its reason; nothing is repaired by guessing. The order
is: landmarks of stored voxels, scaling, then pixels of 1 mm (`data.resample` says why).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from medad_core.data.cases import EARLIER, Case
from medad_core.data.content import Check, check_labels, check_mask, check_volume, spread_slices
from medad_core.data.grid import is_sri24, require_picture
from medad_core.data.intensity import Landmarks, box_of, find_background, find_landmarks, to_uint8
from medad_core.data.levels import brain_extent, place_range
from medad_core.data.mask import read_mask
from medad_core.data.nifti import NiftiFile, open_nifti
from medad_core.data.place import Place, numbers_of
from medad_core.data.resample import plane_affine, resample_plane
from medad_core.errors import CaseError
from medad_core.store.files import name_of

if TYPE_CHECKING:
    from medad_core.config import DataSettings, ScalingSettings

_LARGEST = float(np.finfo(np.float32).max)
DISPLAY_ORIENTATION = "PL"  # rows run to posterior, columns to the patient's left: anterior up, left on the right


@dataclass(frozen=True)
class CaseSlices:
    """Slices of one case as pictures: row 0 is anterior, column 0 is the patient's right (radiological convention).

    slice_index (N,) int32: 0-based, counted from inferior to superior. images (N, H, W) uint8. brain (N, H, W) bool.
    around (M, H, W) uint8 are the pictures of the range and of what lies up to `step` slices below and above it, those
    of the range from number `first` on. `step` is None where no context was asked for, 0 where slices are too thick.
    masks (N, H, W) bool (True is tumour) or None where unlabelled. spacing_mm is the pictures' (row, column, slice);
    stored_spacing_mm is the file's, and differs where pictures were resampled to 1 mm. stored_orientation is the file's
    ("LPS", "RAS", …). checks are those of the content (`data.content`); those of earlier runs' cases are empty.
    place is where the pictures lie; None for generated ones.
    """

    case_id: str
    slice_index: np.ndarray
    images: np.ndarray
    brain: np.ndarray
    masks: np.ndarray | None
    spacing_mm: tuple[float, float, float]
    stored_orientation: str
    stored_spacing_mm: tuple[float, float, float]
    checks: tuple[Check, ...] = ()
    around: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.uint8))
    first: int = 0
    step: int | None = None
    place: Place | None = None

    @property
    def below(self) -> np.ndarray:
        """The number in `around` of the picture below each slice (N,); a slice stands in for one that is not there."""
        own, step = self._own, self.step or 0
        return np.where(own >= step, own - step, own)

    @property
    def above(self) -> np.ndarray:
        """As `below`, of the picture above."""
        own, step = self._own, self.step or 0
        return np.where(own + step < len(self.around), own + step, own)

    @property
    def _own(self) -> np.ndarray:
        return self.first + np.arange(len(self.images))

    @property
    def pictures(self) -> np.ndarray:
        """What the encoder sees: uint8 (N, 3, H, W), below, itself and above; without context (N, H, W)."""
        if not self.step:
            return self.images
        return np.stack([self.around[self.below], self.images, self.around[self.above]], axis=1)


def read_slices(case: Case, settings: DataSettings) -> CaseSlices:
    """Read slices settings.first_slice..last_slice (inclusive) of `settings.modality`, scaled by `settings.scaling`.

    With `case.levels` "brain" the slices are those with the same anatomy as these of SRI24, and so are the reference
    slices of the scaling. Pictures have pixels of 1 mm; the slices are the volume's own.

    Raises CaseError for a file that cannot be used, a grid without trustworthy pictures, a volume that does not reach
    the range, an empty brain, values that are not finite, and a mask of another grid or with other than whole labels
    >= 0; InputError for a filesystem that failed in a way that may pass.
    """
    opened = _open(case, settings)
    header = opened.file.header
    block = opened.block
    wanted = block.wanted
    shown = block.around(opened.step or 0)
    brain = block.part(block.brain, shown)
    around = to_uint8(block.part(block.values, shown), brain, opened.landmarks)
    masks = opened.masks
    spacing_mm = header.spacing_mm
    to_ras = header.picture_affine
    if case.layout != EARLIER:
        to_ras = to_ras @ plane_affine(*header.picture_shape[1:], spacing_mm)
        around, brain, masks, spacing_mm = resample_plane(around, brain, masks, spacing_mm)
    first = wanted.start - shown.start
    own = slice(first, first + len(wanted))
    return CaseSlices(
        case_id=case.case_id,
        slice_index=np.arange(wanted.start, wanted.stop, dtype=np.int32),
        images=around[own],
        brain=np.ascontiguousarray(brain[own]),
        masks=masks,
        spacing_mm=spacing_mm,
        stored_orientation=header.stored_orientation,
        stored_spacing_mm=header.spacing_mm,
        around=around,
        first=first,
        step=opened.step,
        checks=opened.checks,
        place=Place(
            header.shape, numbers_of(header.affine), numbers_of(to_ras), header.picture_shape[0], is_sri24(header)
        ),
    )


def check_slices(case: Case, settings: DataSettings) -> tuple[Check, ...]:
    """The checks of `read_slices`, and its errors, without making pictures, which refuses nothing."""
    return _open(case, settings).checks


def _open(case: Case, settings: DataSettings) -> _Opened:
    """Everything that `read_slices` may refuse."""
    file = open_nifti(case.case_id, case.volumes[settings.modality], settings.max_gib)
    require_picture(file.header, case.case_id, file.name)
    context = settings.context_mm
    step = context_step(context, file.header.spacing_mm[2]) if context else None
    by_brain = case.levels == "brain"
    block = _read_by_brain(file, settings) if by_brain else _read_by_index(file, settings, step or 0)
    masks = read_mask(case, file.header, block.wanted, settings.max_gib)
    landmarks = _landmarks(file, block, settings.scaling)
    checks: tuple[Check, ...] = ()
    if case.layout != EARLIER:
        checks = _check_content(case, file, block, masks, settings)
    return _Opened(file, block, masks, landmarks, step, checks)


def context_step(context_mm: float, spacing_mm: float) -> int:
    """How many slices away the nearest one to `context_mm` is; 0 where that is the slice itself, as in thick slices."""
    return int(context_mm / spacing_mm + 0.5)


def _check_content(
    case: Case, file: NiftiFile, block: _Block, masks: np.ndarray | None, settings: DataSettings
) -> tuple[Check, ...]:
    """What the checks of content say. Raises CaseError where one refuses, unless `settings.checks` is "warn"."""
    chosen = spread_slices(0, len(block.wanted) - 1)
    values = block.part(block.values, block.wanted)[chosen]
    brain = block.part(block.brain, block.wanted)[chosen]
    checks = check_volume(values, brain, file.header.spacing_mm, settings.modality)
    if masks is not None and settings.modality == "flair":
        checks += check_mask(values, brain, masks[chosen], file.header.spacing_mm)
    if masks is not None and case.tumour_labels is not None and not masks.any():
        labelled = read_mask(replace(case, tumour_labels=None), file.header, block.wanted, settings.max_gib)
        checks += check_labels(labelled is not None and bool(labelled.any()), case.tumour_labels)
    refused = next((check for check in checks if check.verdict == "refuse"), None)
    if refused is not None and settings.checks == "refuse":
        is_of_mask = case.mask is not None and refused.name.startswith("mask_")
        name = name_of(case.mask.path) if is_of_mask else file.name
        raise CaseError(
            file.case_id, f"{name}: {refused.reason} (data.checks=warn and another --out screen it all the same)"
        )
    return checks


@dataclass(frozen=True)
class _Block:
    """Slices of a volume from number `start` on: `values` and `brain` (n, H, W). The ranges are the volume's slices."""

    start: int
    values: np.ndarray
    brain: np.ndarray
    wanted: range
    reference: range

    def part(self, array: np.ndarray, slices: range) -> np.ndarray:
        return array[slices.start - self.start : slices.stop - self.start]

    def around(self, step: int) -> range:
        """The slices that are wanted, and what the block holds of `step` more below and above."""
        return range(
            max(self.wanted.start - step, self.start), min(self.wanted.stop + step, self.start + len(self.values))
        )


@dataclass(frozen=True)
class _Opened:
    """A case whose files can be used, before its pictures are made."""

    file: NiftiFile
    block: _Block
    masks: np.ndarray | None
    landmarks: Landmarks
    step: int | None
    checks: tuple[Check, ...]


def _read_by_index(file: NiftiFile, settings: DataSettings, step: int) -> _Block:
    """No more of the volume than the range, `step` slices beside it, and the reference need."""
    reference = _check_range(file, settings)
    wanted = range(settings.first_slice, settings.last_slice + 1)
    start = min(max(wanted.start - step, 0), reference.start)
    stop = max(min(wanted.stop + step, file.header.picture_shape[0]), reference.stop)
    values = _finite_block(file, start, stop)
    return _Block(start, values, _brain(file, values), wanted, reference)


def _read_by_brain(file: NiftiFile, settings: DataSettings) -> _Block:
    """The whole volume, and the range and reference where its brain places them."""
    count = file.header.picture_shape[0]
    values = _finite_block(file, 0, count)
    brain = _brain(file, values)
    extent = brain_extent(np.count_nonzero(brain, axis=(1, 2)), file.case_id, file.name)
    scaling = settings.scaling
    wanted = place_range(settings.first_slice, settings.last_slice, extent, count)
    reference = place_range(scaling.reference_first, scaling.reference_last, extent, count)
    for slices, keys in ((wanted, "data"), (reference, "data.scaling")):
        if not slices:
            raise CaseError(
                file.case_id,
                f"{file.name}: by its brain's extent it has none of the slices that {keys} names; "
                f"check the range of {keys}, which counts slices of SRI24",
            )
    return _Block(0, values, brain, wanted, reference)


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
    """Slices start..stop - 1, bright where the scanner's are; raises where a value is no finite 32-bit number."""
    block = file.slices(start, stop - 1)
    # Both ends are within the range of float32 only where every value is, and no NaN is among them.
    if block.dtype.kind == "f" and not (block.min() >= -_LARGEST and block.max() <= _LARGEST):
        bad = int(block.size - np.isfinite(block).sum())
        what = "NaN or infinite" if bad else f"beyond {_LARGEST:.3g}, the largest 32-bit number"
        bad = bad or int(np.count_nonzero(np.abs(block) > _LARGEST))
        raise CaseError(
            file.case_id,
            f"{file.name}: {bad} voxels of slices {start} to {stop - 1} are {what}; repair or leave out the volume",
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


def _landmarks(file: NiftiFile, block: _Block, scaling: ScalingSettings) -> Landmarks:
    """What the pictures are scaled by, from the reference slices."""
    brain = block.part(block.brain, block.reference)
    box = box_of(brain)
    values = block.part(block.values, block.reference)[box][brain[box]]
    if values.size == 0:
        raise CaseError(
            file.case_id,
            f"{file.name}: empty brain, every voxel of the reference slices is background; check the volume",
        )
    landmarks = find_landmarks(values, scaling)
    if landmarks is None:
        raise CaseError(file.case_id, f"{file.name}: no contrast inside the brain; check the volume")
    if not landmarks.are_resolved:
        raise CaseError(
            file.case_id,
            f"{file.name}: its brain's values, {landmarks.black:g} to {landmarks.white:g}, cannot be distinguished in "
            "32 bits; export it in units in which they lie between 0 and some thousands",
        )
    return landmarks

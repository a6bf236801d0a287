"""Masks: where their affine places them, by whole voxels or not at all, and with labels that are whole numbers."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data_read import AFFINE, ALL_ORIENTATIONS, SHAPE, brain_array, mask_array, read, save

from medad_core.config import DataSettings
from medad_core.data.cases import Case, VolumeRef
from medad_core.data.discovery import discover
from medad_core.data.mask import read_mask
from medad_core.data.nifti import open_nifti
from medad_core.data.read import read_slices
from medad_core.errors import CaseError

REAL_FILES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
EDGES = np.array([0.5, 0.7, 2.0])
OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, -0.2, 0.3) @ np.diag([-1, -1, 1] * EDGES), [9, -7, 40])
PADDED = tuple(size + 8 for size in SHAPE)  # a volume with 4 voxels of air around the mask's labels


@pytest.fixture
def good(tmp_path) -> VolumeRef:
    return save(brain_array(), tmp_path / "good_flair.nii.gz")


def shifted(affine: np.ndarray, voxels) -> np.ndarray:
    """The affine of an array whose first voxel is the one with the indices `voxels` of the array of `affine`."""
    moved = affine.copy()
    moved[:3, 3] = (affine @ [*voxels, 1])[:3]
    return moved


def all_slices(folder: Path, mask: VolumeRef, affine=OBLIQUE, shape=PADDED) -> np.ndarray:
    """The mask on a volume's grid, (X, Y, Z) as the volume is stored (LPS, so no axis is reversed)."""
    volume = save(np.zeros(shape, np.uint8), folder / "volume.nii", affine)
    header = open_nifti("case", volume, 4).header
    assert header.stored_orientation == "LPS"
    return read_mask(Case("case", {}, mask), header, range(shape[2]), 4).transpose(2, 1, 0)


def labels_in(shape, seed: int) -> np.ndarray:
    """Random labels that leave a margin of 4 voxels."""
    labels = np.zeros(shape, np.uint8)
    inner = tuple(slice(4, size - 4) for size in shape)
    labels[inner] = np.random.default_rng(seed).integers(0, 5, [size - 8 for size in shape])
    return labels


@REAL_FILES
@given(
    low=st.tuples(*[st.integers(-3, 3)] * 3),
    high=st.tuples(*[st.integers(-3, 3)] * 3),
    orientation=st.sampled_from(ALL_ORIENTATIONS),
    seed=st.integers(0, 99),
)
def test_a_cropped_or_padded_mask_is_moved_to_its_place_however_it_is_stored(tmp_path, low, high, orientation, seed):
    """From 3 voxels outside the volume to 3 inside of it, on each of six sides."""
    labels = labels_in(PADDED, seed)
    padded = np.pad(labels, 3)
    start = [3 + edge for edge in low]
    stop = [size - 3 + edge for size, edge in zip(padded.shape, high, strict=True)]
    part = padded[tuple(map(slice, start, stop))]
    image = nib.Nifti1Image(part, shifted(OBLIQUE, low)).as_reoriented(orientation)
    nib.save(image, tmp_path / "seg.nii")
    assert np.array_equal(all_slices(tmp_path, VolumeRef(str(tmp_path / "seg.nii"))), labels > 0)


@REAL_FILES
@given(voxels=st.tuples(*[st.integers(-4, 4)] * 3), seed=st.integers(0, 99))
def test_a_mask_of_the_volumes_shape_is_moved_by_whole_voxels(tmp_path, voxels, seed):
    labels = labels_in(PADDED, seed)
    seg = save(labels, tmp_path / "seg.nii", shifted(OBLIQUE, voxels))
    expected = np.roll(labels, voxels, (0, 1, 2)) > 0
    assert np.array_equal(all_slices(tmp_path, seg), expected)


@REAL_FILES
@given(direction=st.tuples(*[st.floats(-1, 1)] * 3), share=st.floats(0, 0.49), seed=st.integers(0, 99))
def test_a_mask_within_half_the_smallest_edge_is_taken_as_it_is(tmp_path, direction, share, seed):
    length = np.linalg.norm(direction)
    move = np.array(direction) / max(length, 1e-9) * share * EDGES.min()
    affine = OBLIQUE.copy()
    affine[:3, 3] += move
    labels = labels_in(PADDED, seed)
    assert np.array_equal(all_slices(tmp_path, save(labels, tmp_path / "seg.nii", affine)), labels > 0)


@REAL_FILES
@given(
    axis=st.integers(0, 2),
    whole=st.integers(-5, 5),
    share=st.floats(0.06, 0.94),
)
def test_a_mask_between_the_voxels_is_refused_with_its_distance(tmp_path, axis, whole, share):
    """`share` of a voxel besides whole ones, and more than half the smallest edge in all."""
    voxels = np.zeros(3)
    voxels[axis] = whole + share
    distance = np.linalg.norm(OBLIQUE[:3, :3] @ voxels)
    from_whole = min(share, 1 - share) * EDGES[axis]
    if distance <= 0.5 * EDGES.min() or from_whole <= 0.051 * EDGES.min():
        return
    seg = save(labels_in(PADDED, 0), tmp_path / "seg.nii", shifted(OBLIQUE, voxels))
    with pytest.raises(CaseError, match="away from the volume; give a mask on") as caught:
        all_slices(tmp_path, seg)
    stated = re.search(r"places it (\S+) mm", caught.value.reason)
    assert float(stated[1]) == pytest.approx(distance, rel=0.01)


@pytest.mark.parametrize("share", [0.5, -0.5])
def test_exactly_half_a_voxel_is_refused(tmp_path, share):
    seg = save(labels_in(PADDED, 0), tmp_path / "seg.nii", shifted(OBLIQUE, (share, 0, 0)))
    with pytest.raises(CaseError, match=r"places it 0\.25 mm away"):
        all_slices(tmp_path, seg)


@pytest.mark.parametrize("degrees", [0.5, 5.0, 90.0])
def test_a_mask_that_is_turned_is_refused(tmp_path, degrees):
    turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(z=np.radians(degrees)))
    seg = save(labels_in(PADDED, 0), tmp_path / "seg.nii", turn @ OBLIQUE)
    with pytest.raises(CaseError, match=r"places it|mask of shape"):
        all_slices(tmp_path, seg)


def test_of_thick_slices_the_smallest_edge_counts(tmp_path):
    """A slice 5 mm thick does not let a mask lie 5 mm away within it, as it did."""
    affine = np.diag([-1.0, -1.0, 5.0, 1.0])
    labels = labels_in(PADDED, 0)
    for millimetres, expected in ((0.4, labels), (2.0, np.roll(labels, 2, 0)), (2.4, None)):
        moved = affine.copy()
        moved[0, 3] -= millimetres
        seg = save(labels, tmp_path / "seg.nii", moved)
        if expected is None:
            with pytest.raises(CaseError, match=r"places it 2\.4 mm away"):
                all_slices(tmp_path, seg, affine)
        else:
            assert np.array_equal(all_slices(tmp_path, seg, affine), expected > 0)


def test_tumour_that_the_volume_cuts_off_is_refused(tmp_path):
    seg = save(labels_in(PADDED, 0), tmp_path / "seg.nii", shifted(OBLIQUE, (5, 0, 0)))
    with pytest.raises(CaseError, match=r"places it 2\.5 mm away from the volume, \d+ tumour voxels outside it"):
        all_slices(tmp_path, seg)


def test_a_mask_beside_the_volume_is_refused_even_when_it_is_empty(tmp_path):
    seg = save(np.zeros(PADDED, np.uint8), tmp_path / "seg.nii", shifted(OBLIQUE, (50, 0, 0)))
    with pytest.raises(CaseError, match="places it 25 mm away"):
        all_slices(tmp_path, seg)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("end", [0, -1])
def test_a_crop_through_a_tumour_is_refused(tmp_path, axis, end):
    labels = np.zeros(PADDED, np.uint8)
    labels[6:12, 6:12, 6:12] = 1
    keep = [slice(0, size) for size in PADDED]
    keep[axis] = slice(8, None) if end == 0 else slice(0, 8)
    low = [8 if end == 0 and n == axis else 0 for n in range(3)]
    seg = save(labels[tuple(keep)], tmp_path / "seg.nii", shifted(OBLIQUE, low))
    with pytest.raises(CaseError, match="tumour lies on that part's edge"):
        all_slices(tmp_path, seg)


def test_a_mask_without_orientation_must_have_the_volumes_shape(tmp_path, good):
    nib.save(nib.Nifti1Image(mask_array()[:, :, :-1], None), tmp_path / "seg.nii")
    with pytest.raises(CaseError, match="mask of shape"):
        read(good, VolumeRef(str(tmp_path / "seg.nii")))


def test_a_moved_mask_goes_with_the_slices_of_its_volume(tmp_path, good):
    """Through the whole reader: a crop, by its affine, gives the masks of the whole."""
    whole = read(good, save(mask_array(), tmp_path / "whole_seg.nii.gz"))
    crop = save(mask_array()[2:9, 3:9, 1:8], tmp_path / "crop_seg.nii.gz", shifted(AFFINE, (2, 3, 1)))
    assert np.array_equal(read(good, crop).masks, whole.masks)
    assert whole.masks.any()


# Labels


@REAL_FILES
@given(
    seed=st.integers(0, 999),
    error=st.floats(0, 0.0099),
    dtype=st.sampled_from((np.float32, np.float64)),
    largest=st.integers(1, 200),
)
def test_labels_within_a_hundredth_are_whole(tmp_path, seed, error, dtype, largest):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, largest + 1, PADDED) * (rng.random(PADDED) < 0.3)
    near = (labels + rng.uniform(-error, error, PADDED)).astype(dtype)
    assert np.array_equal(all_slices(tmp_path, save(near, tmp_path / "seg.nii", OBLIQUE)), labels > 0)


@REAL_FILES
@given(
    value=st.floats(0.011, 0.989) | st.floats(-100, -0.011) | st.sampled_from((np.nan, np.inf, -np.inf)),
    whole=st.integers(0, 4),
    dtype=st.sampled_from((np.float32, np.float64)),
)
def test_one_value_further_from_a_whole_number_refuses_the_mask(tmp_path, value, whole, dtype):
    labels = labels_in(PADDED, 0).astype(dtype)
    labels[6, 6, 6] = value + (whole if value > 0 else 0)
    with pytest.raises(CaseError, match="no labels"):
        all_slices(tmp_path, save(labels, tmp_path / "seg.nii", OBLIQUE))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32])
@pytest.mark.parametrize("largest", [1, 2, 3, 4])
def test_a_mask_that_nibabel_rescaled_is_read_as_nibabel_reads_it(tmp_path, dtype, largest):
    """`Nifti1Image(image.get_fdata(), image.affine, image.header)`, what every edit with nibabel does."""
    labels = np.minimum(labels_in(PADDED, 1), largest)
    header = nib.Nifti1Image(labels.astype(dtype), OBLIQUE).header
    image = nib.Nifti1Image(labels.astype(np.float64), OBLIQUE, header)
    image.set_data_dtype(dtype)
    nib.save(image, tmp_path / "seg.nii.gz")
    stored = nib.load(tmp_path / "seg.nii.gz")
    assert np.array_equal(np.rint(stored.get_fdata()), labels)
    assert stored.dataobj.slope != 1  # so it is not a mask of whole numbers as stored
    assert np.array_equal(all_slices(tmp_path, VolumeRef(str(tmp_path / "seg.nii.gz"))), labels > 0)


def test_a_background_of_noise_is_no_tumour(tmp_path):
    labels = labels_in(PADDED, 2)
    noisy = (labels + np.random.default_rng(0).uniform(0, 0.004, PADDED)).astype(np.float32)
    assert (noisy > 0).mean() > 0.99
    assert np.array_equal(all_slices(tmp_path, save(noisy, tmp_path / "seg.nii", OBLIQUE)), labels > 0)


@pytest.mark.parametrize(("slope", "inter"), [(0.5, 0.0), (1.0, 0.5), (1.0, -1.0), (-1.0, 0.0)])
def test_a_scale_that_makes_no_labels_is_refused(tmp_path, slope, inter):
    image = nib.Nifti1Image(labels_in(PADDED, 3), OBLIQUE)
    image.header["scl_slope"], image.header["scl_inter"] = slope, inter
    image.header["magic"], image.header["vox_offset"] = b"n+1", 352
    path = tmp_path / "seg.nii"
    path.write_bytes(image.header.binaryblock + bytes(4) + image.dataobj.tobytes(order="F"))
    assert nib.load(path).dataobj.slope == slope
    with pytest.raises(CaseError, match="no labels"):
        all_slices(tmp_path, VolumeRef(str(path)))


def test_a_scale_of_labels_doubles_them(tmp_path):
    image = nib.Nifti1Image(labels_in(PADDED, 3), OBLIQUE)
    image.header.set_slope_inter(2, 0)
    nib.save(image, tmp_path / "seg.nii")
    assert all_slices(tmp_path, VolumeRef(str(tmp_path / "seg.nii"))).any()


def test_a_real_mask_that_is_cropped_to_its_tumour_gives_the_same_rows(shared_data, tmp_path):
    case = next(case for case in discover(shared_data / "brats2021").cases if case.mask)
    image = nib.load(case.mask.path)
    inside = np.argwhere(np.asanyarray(image.dataobj))
    low, high = inside.min(axis=0) - 1, inside.max(axis=0) + 2
    nib.save(image.slicer[tuple(map(slice, low.clip(0), high))], tmp_path / "crop_seg.nii.gz")
    cropped = Case(case.case_id, case.volumes, VolumeRef(str(tmp_path / "crop_seg.nii.gz")))
    assert np.array_equal(read_slices(cropped, DataSettings()).masks, read_slices(case, DataSettings()).masks)

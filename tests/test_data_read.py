"""Reading: the part of a file equals the same part of the whole, in one orientation whatever the storage order."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medad_core.config import DataSettings, ScalingSettings
from medad_core.data.cases import Case, VolumeRef
from medad_core.data.discovery import discover
from medad_core.data.nifti import open_nifti
from medad_core.data.read import CaseSlices, read_slices

SHAPE = (13, 11, 9)  # odd, and different in every axis
AFFINE = np.diag([-1.0, -1.0015, 4.0, 1.0])  # LPS, another edge in every axis, and pixels that count as 1 mm
FIRST, LAST = 2, 6
ALL_ORIENTATIONS = [
    np.array([[axis, flip] for axis, flip in zip(axes, flips, strict=True)])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def settings(**changes) -> DataSettings:
    scaling = ScalingSettings(
        **{"kind": "percentile", "reference_first": FIRST, "reference_last": LAST} | changes.pop("scaling", {})
    )
    return DataSettings(**{"first_slice": FIRST, "last_slice": LAST, "scaling": scaling} | changes)


def brain_array(dtype=np.int16, background=0, seed=0) -> np.ndarray:
    """(X, Y, Z) in LPS order: random tissue in a box off-centre, so that no flip maps it onto itself."""
    values = np.full(SHAPE, background, dtype)
    values[2:10, 3:9, 1:8] = np.random.default_rng(seed).integers(100, 900, (8, 6, 7))
    return values


def mask_array() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:5, 4:6, 3:5] = np.array([1, 2, 4, 4]).reshape(2, 2, 1)
    return labels


def save(array: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> VolumeRef:
    nib.save(nib.Nifti1Image(array, affine, dtype=array.dtype), path)
    return VolumeRef(str(path))


def read(volume: VolumeRef, mask: VolumeRef | None = None, **changes) -> CaseSlices:
    return read_slices(Case("case", {"flair": volume}, mask), settings(**changes))


def same(one: CaseSlices, other: CaseSlices) -> bool:
    return (
        np.array_equal(one.images, other.images)
        and np.array_equal(one.brain, other.brain)
        and np.array_equal(one.masks, other.masks)
    )


@pytest.mark.parametrize("orientation", ALL_ORIENTATIONS, ids=lambda o: "".join(nib.orientations.ornt2axcodes(o)))
def test_every_storage_order_gives_the_same_picture(tmp_path, orientation):
    image, mask = (nib.Nifti1Image(array, AFFINE) for array in (brain_array(), mask_array()))
    plain = read(save(image.dataobj, tmp_path / "a_flair.nii.gz"), save(mask.dataobj, tmp_path / "a_seg.nii.gz"))
    for name, stored in (("b_flair.nii.gz", image), ("b_seg.nii.gz", mask)):
        nib.save(stored.as_reoriented(orientation), tmp_path / name)
    turned = read(VolumeRef(str(tmp_path / "b_flair.nii.gz")), VolumeRef(str(tmp_path / "b_seg.nii.gz")))
    assert same(plain, turned)
    assert turned.spacing_mm == turned.stored_spacing_mm == pytest.approx((1.0015, 1.0, 4.0), abs=1e-5)
    assert turned.stored_orientation == "".join(nib.aff2axcodes(nib.load(tmp_path / "b_flair.nii.gz").affine))


def test_picture_is_anterior_up_and_patient_left_on_the_right(tmp_path):
    array = brain_array()
    canonical = nib.as_closest_canonical(nib.Nifti1Image(array, AFFINE)).get_fdata()  # (R, A, S)
    expected = canonical[::-1, ::-1, FIRST : LAST + 1].transpose(2, 1, 0)  # row 0 is the last A, column 0 the last R
    slices = read(save(array, tmp_path / "flair.nii.gz"))
    assert np.array_equal(slices.brain, expected != 0)
    low, high = np.percentile(expected[expected != 0], (0.5, 99.5))
    assert np.array_equal(
        slices.images,
        np.where(expected != 0, np.rint(np.clip((expected - low) / (high - low), 0, 1) * 255), 0).astype(np.uint8),
    )


def test_slices_are_counted_from_inferior_to_superior(tmp_path):
    array = brain_array()
    upside_down = nib.Nifti1Image(array, AFFINE).as_reoriented(np.array([[0, 1], [1, 1], [2, -1]]))
    nib.save(upside_down, tmp_path / "flair.nii.gz")
    file = open_nifti("case", VolumeRef(str(tmp_path / "flair.nii.gz")), 4)
    assert np.array_equal(file.slices(3, 4), array[:, :, 3:5].transpose(2, 1, 0))


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8", ">i2", ">f4"])
@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_partial_read_equals_the_same_slices_of_a_full_read(tmp_path, dtype, extension):
    array = (brain_array() % 200).astype(dtype)
    path = tmp_path / f"x{extension}"
    header = nib.Nifti1Header(endianness=">" if dtype.startswith(">") else "<")
    nib.save(nib.Nifti1Image(array, AFFINE, header), path)
    full = np.asanyarray(nib.load(path).dataobj)
    for first, last in ((0, 0), (2, 6), (8, 8), (0, 8)):
        assert np.array_equal(
            open_nifti("case", VolumeRef(str(path)), 4).slices(first, last),
            full[:, :, first : last + 1].transpose(2, 1, 0),
        )


def test_each_channel_of_a_4d_file_is_read_as_its_own_volume(tmp_path):
    stack = np.stack([brain_array(seed=n) for n in range(4)], axis=-1)
    path = tmp_path / "BRATS_001.nii.gz"
    save(stack, path)
    for channel in range(4):
        one = read(save(stack[..., channel], tmp_path / f"{channel}_flair.nii.gz"))
        assert np.array_equal(read(VolumeRef(str(path), channel)).images, one.images)


def test_a_nifti2_file_with_an_extension_reads(tmp_path):
    image = nib.Nifti2Image(brain_array(), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 5000))
    nib.save(image, tmp_path / "x.nii.gz")
    assert np.array_equal(
        read(VolumeRef(str(tmp_path / "x.nii.gz"))).images, read(save(brain_array(), tmp_path / "y.nii.gz")).images
    )


def test_gzip_of_several_members_reads(tmp_path):
    save(brain_array(), tmp_path / "x.nii")
    content = (tmp_path / "x.nii").read_bytes()
    (tmp_path / "y.nii.gz").write_bytes(
        gzip.compress(content[:700]) + gzip.compress(content[700:]) + gzip.compress(b"")
    )
    assert np.array_equal(
        read(VolumeRef(str(tmp_path / "y.nii.gz"))).images, read(VolumeRef(str(tmp_path / "x.nii"))).images
    )


def test_the_name_does_not_decide_whether_a_file_is_compressed(tmp_path):
    save(brain_array(), tmp_path / "x.nii")
    (tmp_path / "x.nii").rename(tmp_path / "x.nii.gz")
    assert read(VolumeRef(str(tmp_path / "x.nii.gz"))).images.any()


@pytest.mark.parametrize("kind", ["percentile", "median"])
@pytest.mark.parametrize(
    "change", [lambda x: x * 3.0, lambda x: np.where(x == 0, -3.2, (x - 500.0) / 250)], ids=["factor", "z-score"]
)
def test_intensity_units_do_not_change_the_picture(tmp_path, kind, change):
    array = brain_array()
    plain = read(save(array, tmp_path / "a.nii.gz"), scaling={"kind": kind})
    other = read(save(change(array).astype(np.float32), tmp_path / "b.nii.gz"), scaling={"kind": kind})
    assert np.array_equal(plain.brain, other.brain)
    assert np.abs(plain.images.astype(int) - other.images).max() <= 1  # float32 rounding


def test_a_headers_slope_does_not_change_the_picture(tmp_path):
    image = nib.Nifti1Image(brain_array(), AFFINE)
    image.header.set_slope_inter(0.01, -7)
    nib.save(image, tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "a.nii.gz").dataobj.slope == pytest.approx(0.01)
    sloped = read(VolumeRef(str(tmp_path / "a.nii.gz")))
    values = open_nifti("case", VolumeRef(str(tmp_path / "a.nii.gz")), 4).slices(FIRST, LAST)
    assert np.array_equal(
        sloped.images,
        read(
            save(values.transpose(2, 1, 0), tmp_path / "b.nii.gz"),
            first_slice=0,
            last_slice=4,
            scaling={"reference_first": 0, "reference_last": 4},
        ).images,
    )


def test_a_slices_pixels_do_not_depend_on_the_range_screened(tmp_path):
    volume = save(brain_array(), tmp_path / "a.nii.gz")
    wide, narrow = read(volume, first_slice=1, last_slice=7), read(volume, first_slice=4, last_slice=5)
    assert narrow.slice_index.tolist() == [4, 5]
    assert np.array_equal(wide.images[3:5], narrow.images)


def test_median_scaling_puts_the_median_at_one_kth(tmp_path):
    slices = read(save(brain_array(), tmp_path / "a.nii.gz"), scaling={"kind": "median", "k": 3.0})
    assert np.median(slices.images[slices.brain]) == pytest.approx(255 / 3, abs=1.5)


def test_every_label_above_zero_is_tumour(tmp_path):
    volume = save(brain_array(), tmp_path / "flair.nii.gz")
    expected = (mask_array() > 0)[:, :, FIRST : LAST + 1].transpose(2, 1, 0)
    for dtype in (np.uint8, np.int16, np.uint16, np.float32, np.float64):
        assert np.array_equal(read(volume, save(mask_array().astype(dtype), tmp_path / "seg.nii.gz")).masks, expected)


def test_a_mask_without_orientation_lies_on_the_volumes_array(tmp_path):
    volume = save(brain_array(), tmp_path / "flair.nii.gz")
    bare = nib.Nifti1Image(mask_array(), None)
    nib.save(bare, tmp_path / "seg.nii.gz")
    assert same(
        read(volume, VolumeRef(str(tmp_path / "seg.nii.gz"))),
        read(volume, save(mask_array(), tmp_path / "oriented.nii.gz")),
    )


@pytest.mark.parametrize("folder", ["brats2021", "unlabelled", "odd"])
def test_real_slices_equal_those_of_a_full_canonical_read(shared_data, folder):
    for case in discover(shared_data / folder).cases[:4]:
        slices = read_slices(case, DataSettings())
        canonical = np.asanyarray(nib.as_closest_canonical(nib.load(case.volumes["flair"].path)).dataobj)
        full = canonical[::-1, ::-1, 60:101].transpose(2, 1, 0)
        background = canonical[0, 0, 0]
        assert np.array_equal(slices.brain, full != background), case.case_id
        order = np.argsort(full[slices.brain], kind="stable")
        assert (np.diff(slices.images[slices.brain][order].astype(int)) >= 0).all(), (
            case.case_id
        )  # scaling keeps the order of intensities
        if case.mask:
            labels = np.asanyarray(nib.as_closest_canonical(nib.load(case.mask.path)).dataobj)
            assert np.array_equal(slices.masks, labels[::-1, ::-1, 60:101].transpose(2, 1, 0) > 0), case.case_id


def test_a_ras_file_gives_the_picture_of_its_lps_twin(shared_data, tmp_path):
    (case,) = discover(shared_data / "odd/ras_orientation").cases
    twin = nib.load(case.volumes["flair"].path).as_reoriented(np.array([[0, -1], [1, -1], [2, 1]]))
    nib.save(twin, tmp_path / "twin_flair.nii.gz")
    stored, turned = read_slices(case, DataSettings()), read_slices(discover(tmp_path).cases[0], DataSettings())
    assert (stored.stored_orientation, turned.stored_orientation) == ("RAS", "LPS")
    assert np.array_equal(stored.images, turned.images)

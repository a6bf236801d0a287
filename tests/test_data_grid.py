"""Grids: pictures of squashed pixels are refused, SRI24 is known by its header, other grids are read by the brain."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_data_read import ALL_ORIENTATIONS, brain_array, read, save

from medad_core.config import DataSettings, ScalingSettings
from medad_core.data.cases import Case, VolumeRef
from medad_core.data.discovery import discover
from medad_core.data.grid import SRI24_SHAPE, is_sri24, levels_for
from medad_core.data.levels import SRI24_BOTTOM, SRI24_TOP, brain_extent, place_range
from medad_core.data.nifti import open_nifti
from medad_core.data.nifti_header import Header, parse_header
from medad_core.data.read import CaseSlices, read_slices
from medad_core.errors import CaseError

SRI24 = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
EXTENT = (SRI24_BOTTOM, SRI24_TOP)


def header_of(shape=(240, 240, 155), affine=SRI24, orientation=None) -> Header:
    image = nib.Nifti1Image(np.broadcast_to(np.uint8(0), shape), affine)
    if orientation is not None:
        image = image.as_reoriented(orientation)
    image.header["magic"] = b"n+1"
    return parse_header(image.header.binaryblock, "case", "x.nii")


def scaled(*factors: float) -> np.ndarray:
    return SRI24 @ np.diag([*factors, 1.0])


def head(slices: int, edge: float, low: float, high: float, folder: Path, name="flair") -> VolumeRef:
    """A ball-like brain of `slices` axial slices `edge` mm apart, from `low` to `high` mm above the lowest slice.

    Its intensity rises by 1 a mm from inferior to superior, so that a picture says from which height it is.
    """
    middle = (np.arange(slices) + 0.5) * edge
    half = (high - low) / 2
    share = 1 - ((middle - low - half) / half) ** 2
    x, y = np.meshgrid(np.linspace(-1, 1, 48), np.linspace(-1, 1, 40), indexing="ij")
    inside = (x**2 + y**2)[..., None] < 0.8 * share
    values = np.where(inside, 100 + middle, 0).astype(np.float32)
    return save(values, folder / f"{name}.nii.gz", np.diag([-1.0, -1.0, edge, 1.0]))


def read_by_brain(volume: VolumeRef, first: int, last: int, mask: VolumeRef | None = None) -> CaseSlices:
    settings = DataSettings(first_slice=first, last_slice=last, scaling=ScalingSettings())
    return read_slices(Case("case", {"flair": volume}, mask, levels="brain"), settings)


@pytest.mark.parametrize("orientation", ALL_ORIENTATIONS, ids=lambda o: "".join(nib.orientations.ornt2axcodes(o)))
@pytest.mark.parametrize("long", [0, 1, 2])
def test_pixels_longer_than_2_mm_are_refused_however_they_are_stored(tmp_path, orientation, long):
    edges = np.ones(3)
    edges[long] = 2.1
    image = nib.Nifti1Image(brain_array(), np.diag([*(edges * [-1, -1, 1]), 1.0]))
    nib.save(image.as_reoriented(orientation), tmp_path / "x.nii")
    if long == 2:  # thick axial slices are axial pictures
        assert read(VolumeRef(str(tmp_path / "x.nii"))).images.any()
        return
    with pytest.raises(CaseError, match=r"2\.1.* longer than 2 mm; give an axial or isotropic volume, or resample"):
        read(VolumeRef(str(tmp_path / "x.nii")))


@pytest.mark.parametrize(("edge", "word"), [(2.01, "longer"), (5.0, "longer"), (1000.0, "longer"), (0.001, "units")])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_volume_without_trustworthy_pictures_is_refused_with_its_spacing(tmp_path, edge, word, axis):
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[axis, axis] *= edge
    with pytest.raises(CaseError, match=word) as caught:
        read(save(brain_array(), tmp_path / "x.nii", affine))
    assert f"{edge:.3g}" in caught.value.reason


@pytest.mark.parametrize("edge", [0.25, 0.47, 2.0])
def test_pixels_of_up_to_2_mm_are_pictures(tmp_path, edge):
    assert read(save(brain_array(), tmp_path / "x.nii", np.diag([-edge, -edge, 6.0, 1.0]))).images.any()


@pytest.mark.parametrize("orientation", ALL_ORIENTATIONS, ids=lambda o: "".join(nib.orientations.ornt2axcodes(o)))
def test_sri24_is_known_in_every_storage_order(orientation):
    assert levels_for(header_of(orientation=orientation)) == "index"


@pytest.mark.parametrize(
    ("shape", "affine"),
    [
        ((182, 218, 182), SRI24),
        ((240, 240, 154), SRI24),
        ((240, 155, 240), SRI24),
        ((240, 240, 155), scaled(1, 1, 1.2)),
        ((240, 240, 155), scaled(0.9, 0.9, 1)),
        ((240, 240, 155), nib.affines.from_matvec(nib.eulerangles.euler2mat(x=0.1) @ SRI24[:3, :3], [0, 239, 0])),
    ],
)
def test_other_grids_are_read_by_the_brain(shape, affine):
    assert levels_for(header_of(shape, affine)) == "brain"


def test_the_grid_of_every_real_case_is_known(shared_data):
    for folder, sri24 in (("brats2021", True), ("unlabelled", True), ("odd", True), ("other", False)):
        for case in discover(shared_data / folder).cases:
            assert is_sri24(open_nifti(case.case_id, case.volumes["flair"], 4).header) == sri24, case.case_id


@given(first=st.integers(0, 154), length=st.integers(1, 155))
def test_on_a_brain_like_that_of_sri24_the_range_is_the_index(first, length):
    last = min(first + length, 155) - 1
    assert place_range(first, last, EXTENT, SRI24_SHAPE[0]) == range(first, last + 1)


@given(
    first=st.integers(26, 125),
    last=st.integers(26, 125),
    edge=st.floats(0.5, 7),
    offset=st.floats(0, 200),
    scale=st.floats(0.7, 1.3),
)
def test_a_placed_range_covers_the_same_share_of_the_brain_to_within_a_slice(first, last, edge, offset, scale):
    """A brain `scale` times as tall, `offset` mm above the volume's floor, in slices of `edge` mm."""
    first, last = sorted((first, last))
    bottom = offset / edge
    top = bottom + (SRI24_TOP - SRI24_BOTTOM) * scale / edge
    placed = place_range(first, last, (bottom, top), 10_000)
    low, high = (offset + (index - SRI24_BOTTOM) * scale for index in (first, last + 1))
    assert len(placed) >= 1
    if len(placed) > 1:
        assert abs(placed.start * edge - low) <= edge / 2 + 1e-6
        assert abs(placed.stop * edge - high) <= edge / 2 + 1e-6
    else:  # it holds the range's middle, or all of the range but less than half a slice at either end
        assert placed.start * edge - edge / 2 - 1e-6 <= (low + high) / 2 <= placed.stop * edge + edge / 2 + 1e-6


@given(count=st.integers(1, 200))
def test_ranges_that_follow_each_other_share_no_slice_and_leave_none_out(count):
    extent = (0.1 * count, 0.95 * count)
    parts = [place_range(low, low + 10, extent, count) for low in range(0, 154, 11)]
    if all(len(part) > 1 for part in parts):
        assert [n for part in parts for n in part] == list(place_range(0, 153, extent, count))


@pytest.mark.parametrize(("edge", "slices"), [(1.0, 41), (5.0, 8), (3.0, 14), (0.5, 82)])
def test_slices_60_to_100_are_41_mm_on_every_grid(edge, slices):
    extent = (40 / edge, (40 + SRI24_TOP - SRI24_BOTTOM) / edge)
    assert abs(len(place_range(60, 100, extent, 1000)) - slices) <= 1


@pytest.mark.parametrize("edge", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("low", [3.0, 30.0])
def test_a_volume_is_read_where_its_brain_has_the_range(tmp_path, edge, low):
    """The ball's extent, by its shape: sqrt(0.7) of its height has a cross-section of at least 0.3 of the largest."""
    high = low + 130
    slices = read_by_brain(head(int(200 / edge), edge, low, high, tmp_path), 60, 100)
    bottom = low + 65 * (1 - np.sqrt(0.7))
    extent = 130 * np.sqrt(0.7)
    shares = (np.array([60, 101]) - SRI24_BOTTOM) / (SRI24_TOP - SRI24_BOTTOM)
    expected = bottom + shares * extent
    found = np.array([slices.slice_index[0], slices.slice_index[-1] + 1]) * edge
    assert np.abs(found - expected).max() <= 1.5 * edge
    assert np.array_equal(np.diff(slices.slice_index), np.ones(len(slices.images) - 1))
    assert slices.slice_index.dtype == np.int32


def test_the_pictures_are_those_of_their_indices(tmp_path):
    volume = head(200, 1.0, 30, 160, tmp_path)
    slices = read_by_brain(volume, 60, 100)
    first, last = slices.slice_index[[0, -1]].tolist()
    scaling = ScalingSettings(reference_first=first, reference_last=last)
    settings = DataSettings(first_slice=first, last_slice=last, scaling=scaling)
    by_index = read_slices(Case("case", {"flair": volume}, None), settings)
    assert np.array_equal(slices.images, by_index.images)
    assert np.array_equal(slices.brain, by_index.brain)


def test_the_mask_of_a_range_placed_by_the_brain_is_of_the_same_slices(tmp_path):
    volume = head(200, 1.0, 30, 160, tmp_path)
    index = np.broadcast_to(np.arange(200, dtype=np.uint8) % 3, (48, 40, 200))
    slices = read_by_brain(volume, 60, 100, save(index, tmp_path / "seg.nii.gz", np.diag([-1.0, -1, 1, 1])))
    assert np.array_equal(slices.masks[:, 0, 0], slices.slice_index % 3 > 0)


def test_a_slices_pixels_do_not_depend_on_the_range_that_the_brain_places(tmp_path):
    volume = head(200, 1.0, 30, 160, tmp_path)
    wide, narrow = read_by_brain(volume, 50, 110), read_by_brain(volume, 70, 71)
    place = narrow.slice_index[0] - wide.slice_index[0]
    assert np.array_equal(wide.images[place : place + len(narrow.images)], narrow.images)


@given(
    stump=st.integers(0, 40),
    thickness=st.floats(0.001, 0.29),
    specks=st.integers(0, 20),
    seed=st.integers(0, 99),
)
def test_neither_a_stump_of_the_brainstem_nor_specks_move_the_extent(stump, thickness, specks, seed):
    areas = np.zeros(220)
    areas[60:180] = 15_000 * np.sin(np.linspace(0.35, np.pi - 0.35, 120))  # 0.34 at its ends
    plain = brain_extent(areas, "case", "x")
    areas[60 - stump : 60] = 15_000 * thickness
    areas[np.random.default_rng(seed).integers(0, 60, specks)] += 100
    assert brain_extent(areas, "case", "x") == plain


@pytest.mark.parametrize(("end", "word"), [(slice(70, None), "lowest"), (slice(None, 110), "highest")])
def test_a_brain_that_the_volume_cuts_off_is_refused_only_where_its_extent_counts(tmp_path, end, word):
    image = nib.load(head(200, 1.0, 30, 160, tmp_path).path)
    nib.save(image.slicer[:, :, end], tmp_path / "cut.nii.gz")
    volume = VolumeRef(str(tmp_path / "cut.nii.gz"))
    with pytest.raises(CaseError, match=f"cut off: its {word} slice .* give a volume with the whole brain"):
        read_by_brain(volume, 60, 100)
    scaling = ScalingSettings(reference_first=40, reference_last=60)
    assert read(volume, first_slice=40, last_slice=60, scaling=scaling.model_dump()).images.any()


def test_a_range_that_the_volume_does_not_reach_is_refused_naming_the_setting(tmp_path):
    with pytest.raises(CaseError, match="none of the slices that data names; check the range of data"):
        read_by_brain(head(40, 5.0, 0, 130, tmp_path), 0, 0)


def test_an_empty_volume_is_refused_as_empty(tmp_path):
    with pytest.raises(CaseError, match="empty brain"):
        read_by_brain(save(np.zeros((20, 20, 30), np.int16), tmp_path / "x.nii", np.diag([-1.0, -1, 5, 1])), 60, 100)


def test_real_brains_on_sri24_are_placed_near_their_index(shared_data):
    """The error of the method, as `data.levels` states it: 3.8 mm (root mean square), 10.5 mm at most."""
    errors = []
    for case in discover(shared_data / "brats2021").cases:
        slices = read_slices(Case(case.case_id, case.volumes, case.mask, levels="brain"), DataSettings())
        errors += [slices.slice_index[0] - 60, slices.slice_index[-1] - 100]
    assert np.sqrt(np.mean(np.square(errors))) < 4
    assert np.abs(errors).max() <= 11

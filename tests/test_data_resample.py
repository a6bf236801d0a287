"""Pixels of 1 mm: areas in mm², means under each pixel, and nothing at all where pixels have 1 mm already."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from test_data_read import brain_array, mask_array, read, save

from medad_core.config import DataSettings
from medad_core.data.discovery import discover
from medad_core.data.read import read_slices
from medad_core.data.resample import resample_plane

EDGES = (0.2344, 0.4, 0.43, 0.46875, 0.5, 0.6, 0.75, 0.8594, 0.9, 0.9375, 0.9766, 1.0417, 1.2, 1.5, 2.0)
edges = st.sampled_from(EDGES) | st.floats(0.2, 2)
QUICK = settings(deadline=None, max_examples=60)


def blobs(size: int, edge: float, seed: int, radius_mm: float = 9.0) -> np.ndarray:
    """Smooth random regions of one field of view, bool (1, n, n) with pixels of `edge` mm."""
    rng = np.random.default_rng(seed)
    count = round(size / edge)
    noise = ndimage.gaussian_filter(rng.standard_normal((count, count)), radius_mm / edge / 2)
    inside = noise > np.quantile(noise, 0.85)
    rim = int(np.ceil(1.5 / edge))  # pixels at the rim of the new picture may be no brain, and `shares` sees none there
    inside[:rim] = inside[-rim:] = False
    inside[:, :rim] = inside[:, -rim:] = False
    return inside[None]


def resampled_mask(mask: np.ndarray, rows: float, columns: float) -> np.ndarray:
    images = np.zeros(mask.shape, np.uint8)
    return resample_plane(images, np.ones(mask.shape, bool), mask, (rows, columns, 3.0))[2]


@given(rows=st.floats(0.9981, 1.0019), columns=st.floats(0.9981, 1.0019))
def test_pixels_of_1_mm_are_left_as_they_are(rows, columns):
    images = np.zeros((2, 5, 7), np.uint8)
    brain = np.ones((2, 5, 7), bool)
    out = resample_plane(images, brain, brain, (rows, columns, 3.0))
    assert out[0] is images and out[1] is brain and out[2] is brain and out[3] == (rows, columns, 3.0)


@QUICK
@given(rows=edges, columns=edges, height=st.integers(1, 60), width=st.integers(1, 60))
def test_pictures_have_the_length_of_the_stored_ones_in_mm(rows, columns, height, width):
    images = np.full((2, height, width), 7, np.uint8)
    brain = np.ones(images.shape, bool)
    new, _, _, spacing = resample_plane(images, brain, None, (rows, columns, 3.0))
    for size, old, edge, new_edge in zip(new.shape[1:], (height, width), (rows, columns), spacing[:2], strict=True):
        assert -0.011 <= size * new_edge - old * edge < 1
    assert spacing[2] == 3.0


def overlap(low: float, high: float, other_low: float, other_high: float) -> float:
    return max(0.0, min(high, other_high) - max(low, other_low))


@QUICK
@given(rows=edges, columns=edges, seed=st.integers(0, 1000))
def test_each_pixel_is_the_mean_under_it_weighted_by_area(rows, columns, seed):
    """Against a sum over every pair of an old and a new pixel."""
    images = np.random.default_rng(seed).integers(1, 256, (1, 5, 4)).astype(np.uint8)
    new, kept, _, spacing = resample_plane(images, np.ones(images.shape, bool), None, (rows, columns, 1.0))
    height, width = new.shape[1:]
    top = (height * spacing[0] - 5 * rows) / 2
    left = (width * spacing[1] - 4 * columns) / 2
    for row, column in np.argwhere(kept[0]):
        total = area = 0.0
        for i in range(5):
            tall = overlap(row * spacing[0], (row + 1) * spacing[0], top + i * rows, top + (i + 1) * rows)
            for j in range(4):
                low, high = left + j * columns, left + (j + 1) * columns
                part = tall * overlap(column * spacing[1], (column + 1) * spacing[1], low, high)
                total += part * images[0, i, j]
                area += part
        assert abs(new[0, row, column] - total / area) <= 0.5 + 1e-3


@pytest.mark.parametrize("edge", [0.5, 0.25, 0.2])
def test_whole_pixels_in_a_pixel_give_their_mean_exactly(edge):
    count = round(1 / edge)
    images = np.random.default_rng(0).integers(0, 256, (3, 4 * count, 6 * count)).astype(np.uint8)
    new, *_ = resample_plane(images, np.ones(images.shape, bool), None, (edge, edge, 1.0))
    expected = images.reshape(3, 4, count, 6, count).astype(float).mean(axis=(2, 4))
    assert np.array_equal(new, np.rint(expected))


@QUICK
@given(rows=edges, columns=edges, seed=st.integers(0, 1000), grey=st.integers(1, 255))
def test_a_brain_of_one_grey_stays_of_one_grey_to_its_rim(rows, columns, seed, grey):
    brain = blobs(40, 1.0, seed)
    images = np.where(brain, grey, 0).astype(np.uint8)
    new, kept, _, _ = resample_plane(images, brain, None, (rows, columns, 1.0))
    assert np.array_equal(new, np.where(kept, grey, 0))


def shares(mask: np.ndarray, rows: float, columns: float) -> np.ndarray:
    """How much of each new pixel a mask (1, H, W) covers, to 1/250: its mean as a picture where all is brain."""
    as_image = np.where(mask, 251, 1).astype(np.uint8)
    images, _, _, _ = resample_plane(as_image, np.ones(mask.shape, bool), None, (rows, columns, 1.0))
    return (images.astype(float) - 1) / 250


@QUICK
@given(rows=edges, columns=edges, seed=st.integers(0, 1000), density=st.floats(0, 1))
def test_a_mask_keeps_its_area_in_every_slice_and_its_most_covered_pixels(rows, columns, seed, density):
    mask = np.zeros((1, 24, 28), bool)
    mask[:, 6:18, 6:22] = np.random.default_rng(seed).random((1, 12, 16)) < density
    new = resampled_mask(mask, rows, columns)
    pixel = np.prod([1 if abs(edge - 1) > 0.002 else edge for edge in (rows, columns)])
    assert abs(new.sum() * pixel - mask.sum() * rows * columns) <= 0.5 * pixel + 1e-4
    covered = shares(mask, rows, columns)
    assert covered[new].min(initial=1) >= covered[~new].max(initial=0) - 0.01


@QUICK
@given(edge=edges, seed=st.integers(0, 1000))
@example(edge=0.26862954, seed=1)
def test_a_smooth_region_keeps_all_pixels_that_it_covers_well_and_no_others(edge, seed):
    mask = blobs(60, edge, seed)
    covered = shares(mask, edge, edge)
    new = resampled_mask(mask, edge, edge)
    # The number of pixels is rounded: one that is covered nearly whole may be left out, or one hardly covered kept.
    assert np.count_nonzero(~new[covered > 0.95]) <= 1
    assert np.count_nonzero(new[covered < 0.05]) <= 1
    assert np.abs(new - covered).mean() < 0.03


@pytest.mark.parametrize("edge", EDGES)
def test_areas_of_small_lesions_are_preserved(edge):
    """Discs of 3 to 6 mm at 100 random places: within 1 % on average, and each within half a pixel."""
    rng = np.random.default_rng(0)
    count = round(60 / edge)
    y, x = (np.mgrid[:count, :count] + 0.5) * edge
    before = after = 0.0
    for _ in range(100):
        row, column = rng.uniform(10, 50, 2)
        disc = ((y - row) ** 2 + (x - column) ** 2 < rng.uniform(1.5, 3) ** 2)[None]
        area = disc.sum() * edge * edge
        new = resampled_mask(disc, edge, edge).sum()
        assert abs(new - area) <= 0.5 + 1e-4
        before += area
        after += new
    assert abs(after / before - 1) < 0.01


@pytest.mark.parametrize("offset", range(4))
def test_a_half_covered_pixel_makes_lesions_neither_larger_nor_smaller(offset):
    """A square of 20 x 20 mm in pixels of 0.5 mm, at any place: ties on one side are gained, on the other lost."""
    mask = np.zeros((1, 80, 80), bool)
    mask[:, 10 + offset : 50 + offset, 10 + offset : 50 + offset] = True
    new = resampled_mask(mask, 0.5, 0.5)
    assert new.sum() == 400
    assert new.any(axis=1).sum() in (20, 21) and new.any(axis=2).sum() in (20, 21)


def test_landmarks_are_those_of_the_stored_voxels(tmp_path):
    """A pixel's grey is the mean of what its stored pixels have without resampling."""
    values = np.random.default_rng(0).integers(50, 900, (24, 24, 9)).astype(np.int16)
    values[[0, 1, -2, -1]] = values[:, [0, 1, -2, -1]] = 0
    plain = read(save(values, tmp_path / "a.nii", np.diag([-1.0, -1, 3, 1])))
    fine = read(save(values, tmp_path / "b.nii", np.diag([-0.5, -0.5, 3, 1])))
    means = plain.images.reshape(5, 12, 2, 12, 2).astype(float).mean(axis=(2, 4))
    assert np.array_equal(fine.images, np.rint(means))
    assert fine.spacing_mm == (1, 1, 3) and fine.stored_spacing_mm == (0.5, 0.5, 3)
    assert np.array_equal(fine.slice_index, plain.slice_index)


@pytest.mark.parametrize(("rows", "columns"), [(0.5, 1.0), (1.0, 0.5), (1.5, 0.75)])
def test_one_axis_alone_is_resampled_and_the_mask_and_brain_with_it(tmp_path, rows, columns):
    affine = np.diag([-columns, -rows, 3.0, 1.0])
    slices = read(save(brain_array(), tmp_path / "a.nii", affine), save(mask_array(), tmp_path / "b.nii", affine))
    assert slices.images.shape == slices.brain.shape == slices.masks.shape
    assert slices.images.shape[1:] == (int(np.ceil(11 * rows)), int(np.ceil(13 * columns)))
    assert slices.spacing_mm == (1, 1, 3)
    assert not slices.images[~slices.brain].any()
    area = slices.masks.sum(axis=(1, 2))
    assert np.array_equal(area > 0, mask_array().any(axis=(0, 1))[2:7])


@pytest.mark.parametrize("edge", [0.5, 0.9375])
def test_areas_of_a_real_tumour_are_preserved_in_every_slice(shared_data, edge):
    """A real mask, taken as one with another edge."""
    case = next(case for case in discover(shared_data / "brats2021").cases if case.mask)
    masks = read_slices(case, DataSettings()).masks
    before = masks.sum(axis=(1, 2)) * edge * edge
    after = resampled_mask(masks, edge, edge).sum(axis=(1, 2))
    assert before.any()
    assert np.abs(after - before).max() <= 0.5 + 1e-3

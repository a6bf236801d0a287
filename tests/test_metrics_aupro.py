"""AUPRO of a histogram: against an independent implementation on every pixel, and against a value worked by hand."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from medad_core.metrics import PixelHistogram

LIMIT = 0.3


def exact_aupro(maps: np.ndarray, masks: np.ndarray) -> float:
    """Every distinct value a threshold, every region counted by itself: the definition, without the code."""
    regions = []
    for anomaly_map, mask in zip(maps, masks, strict=True):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        regions += [np.sort(anomaly_map[labels == number + 1]) for number in range(count)]
    healthy = np.sort(maps[~masks])
    cuts = np.unique(maps)[::-1]
    rate = np.r_[0, 1 - np.searchsorted(healthy, cuts) / len(healthy)]
    overlap = np.r_[0, np.mean([1 - np.searchsorted(region, cuts) / len(region) for region in regions], axis=0)]
    within = rate <= LIMIT
    x, y = np.r_[rate[within], LIMIT], np.r_[overlap[within], np.interp(LIMIT, rate, overlap)]
    return float(np.trapezoid(y, x) / LIMIT)


def counted(maps: np.ndarray, masks: np.ndarray) -> PixelHistogram:
    histogram = PixelHistogram()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        histogram.accumulate(anomaly_map, mask)
    return histogram


def drawn(seed: int, power: float) -> tuple[np.ndarray, np.ndarray]:
    """Twelve maps whose lesions are found more or less well; values near 0 for a high power."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((12, 64, 64), bool)
    for mask in masks[:9]:
        for _ in range(rng.integers(1, 4)):
            y, x, size = *rng.integers(0, 50, 2), rng.integers(2, 14)
            mask[y : y + size, x : x + size] = True
    noise = ndimage.gaussian_filter(rng.random(masks.shape), (0, 1, 1))
    return np.clip((noise + 0.12 * masks * rng.random((12, 1, 1))) ** power, 0, 1).astype(np.float32), masks


@pytest.mark.parametrize("power", [1, 6, 20])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_aupro_equals_an_independent_implementation_within_1e_3(seed, power):
    maps, masks = drawn(seed, power)
    assert counted(maps, masks).aupro == pytest.approx(exact_aupro(maps, masks), abs=1e-3)


def test_aupro_of_two_regions_worked_by_hand():
    # Ten healthy pixels, two at 0.7, eight at 0.1. Region A (4 pixels) scores 0.9, region B (1 pixel) 0.6.
    # Thresholds from above: at 0.9 the overlap is (1 + 0) / 2 = 0.5 with no false positive; at 0.7 it stays 0.5 and
    # the rate becomes 0.2; at 0.6 it is 1; at 0.1 the rate runs to 1.
    # Area to 0.3: 0.5 × 0.2 + 1 × 0.1 = 0.2, divided by 0.3.
    anomaly_map = np.full((3, 5), 0.1, np.float32)
    anomaly_map[:2, :2], anomaly_map[0, 4], anomaly_map[2, :2] = 0.9, 0.6, 0.7
    mask = np.zeros((3, 5), bool)
    mask[:2, :2], mask[0, 4] = True, True
    assert counted(anomaly_map[None], mask[None]).aupro == pytest.approx(0.2 / 0.3, abs=1e-9)


def test_pixels_that_touch_at_a_corner_are_one_region():
    mask = np.eye(4, dtype=bool)
    assert counted(np.full((1, 4, 4), 0.5, np.float32), mask[None]).regions == 1


def test_a_small_region_weighs_as_much_as_a_large_one():
    mask = np.zeros((1, 40, 40), bool)
    mask[0, :20, :20], mask[0, 30, 30] = True, True
    large, small = np.full((1, 40, 40), 0.1, np.float32), np.full((1, 40, 40), 0.1, np.float32)
    large[0, :20, :20], small[0, 30, 30] = 0.9, 0.9
    assert counted(large, mask).aupro == pytest.approx(counted(small, mask).aupro, abs=1e-9)


def test_histograms_of_patients_add_up_to_that_of_all():
    maps, masks = drawn(3, 2)
    assert (counted(maps[:5], masks[:5]) + counted(maps[5:], masks[5:])).aupro == pytest.approx(
        counted(maps, masks).aupro, abs=1e-12
    )


def test_a_histogram_comes_back_from_its_arrays():
    histogram = counted(*drawn(4, 2))
    again = PixelHistogram.from_arrays(histogram.to_arrays())
    assert (again.aupro, again.auroc, again.dice(0.3), again.pixels) == (
        histogram.aupro,
        histogram.auroc,
        histogram.dice(0.3),
        histogram.pixels,
    )


def test_aupro_is_undefined_without_lesions():
    assert np.isnan(counted(np.full((1, 4, 4), 0.5, np.float32), np.zeros((1, 4, 4), bool)).aupro)


def test_edges_are_the_thresholds_between_which_nothing_changes():
    maps, masks = drawn(5, 2)
    histogram = counted(maps, masks)
    dice = histogram.dice_of_levels
    for level in (0, 1200, 2600, 2700, 3000, 4095):
        assert dice[level] == pytest.approx(histogram.dice(histogram.edges[level]), abs=1e-12)


def test_memory_does_not_grow_with_the_number_of_slices():
    def peak(slices: int) -> float:
        rng, histogram = np.random.default_rng(0), PixelHistogram()
        mask = np.zeros((224, 224), bool)
        mask[60:90, 60:90] = True
        tracemalloc.start()
        for _ in range(slices):
            histogram.accumulate(rng.random((224, 224), np.float32), mask)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    # The least of three: threads of other tests allocate too.
    assert min(peak(200) for _ in range(3)) < 1.05 * min(peak(20) for _ in range(3))

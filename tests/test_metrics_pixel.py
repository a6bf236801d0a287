"""Pixel metrics from histograms agree with scikit-learn's exact ones and with values worked by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, roc_auc_score

from medad_core.metrics import PixelHistogram


def lesion(seed: int, size: int = 240, saturation: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A noisy map of one round lesion, float32 (H, W), and its mask; it piles up near 0 and 1 as a decoder's does."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:size, :size]
    y, x, radius = *rng.uniform(60, 180, 2), rng.uniform(8, 35)
    distance = np.hypot(rows - y, cols - x) - radius
    odds = saturation * (-distance / 4 + rng.normal(0, 3, (size, size)))
    return (1 / (1 + np.exp(-odds))).astype(np.float32), distance <= 0


def accumulated(pairs: list[tuple[np.ndarray, np.ndarray]]) -> PixelHistogram:
    histogram = PixelHistogram()
    for anomaly_map, mask in pairs:
        histogram.accumulate(anomaly_map, mask)
    return histogram


@pytest.mark.parametrize("saturation", [0.05, 0.2, 1.0, 3.0, 5.0])
def test_curves_equal_scikit_learn_within_1e_4(saturation):
    pairs = [lesion(seed, saturation=saturation) for seed in range(4)]
    pairs.append((pairs[0][0] * np.float32(0.4), np.zeros((240, 240), bool)))
    scores = np.concatenate([anomaly_map.ravel() for anomaly_map, _ in pairs])
    labels = np.concatenate([mask.ravel() for _, mask in pairs])
    histogram = accumulated(pairs)
    assert histogram.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-4)
    assert histogram.average_precision == pytest.approx(average_precision_score(labels, scores), abs=1e-4)


@pytest.mark.parametrize("power", [10, 100, 1000])
def test_curves_of_maps_that_pile_up_near_0_equal_scikit_learn_within_1e_4(power):
    rng = np.random.default_rng(power)
    mask = np.zeros((300, 300), bool)
    mask[40:90, 60:120] = True
    # Of the highest power most pixels are 0 in float32, tumour among them: ties, which scikit-learn counts as such.
    anomaly_map = (rng.random(mask.shape) ** np.where(mask, power / 4, power)).astype(np.float32)
    histogram = accumulated([(anomaly_map, mask)])
    assert histogram.auroc == pytest.approx(roc_auc_score(mask.ravel(), anomaly_map.ravel()), abs=1e-4)
    assert histogram.average_precision == pytest.approx(
        average_precision_score(mask.ravel(), anomaly_map.ravel()), abs=1e-4
    )


def test_half_is_an_edge_in_every_precision():
    for kind in (np.float16, np.float32, np.float64):
        half = kind(0.5)
        below = np.nextafter(half, kind(0))
        histogram = accumulated([(np.array([[half, below]], kind), np.array([[True, True]]))])
        assert histogram.dice(0.5) == pytest.approx(2 / 3), kind  # one of two found


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (6, 7), elements=st.floats(0, 1, width=32)),
    arrays(bool, (6, 7)),
)
def test_dice_at_half_is_exact(anomaly_map, mask):
    if not mask.any():
        return
    called = anomaly_map >= 0.5
    expected = 2 * (called & mask).sum() / (called.sum() + mask.sum())
    assert accumulated([(anomaly_map, mask)]).dice(0.5) == pytest.approx(expected, abs=1e-12)


def test_hand_worked_values():
    # Tumour pixels at 0.9 and 0.3, others at 0.6, 0.1: 3 of 4 pairs in order. Descending T O T O: AP = (1 + 2/3) / 2.
    anomaly_map, mask = np.array([[0.9, 0.6], [0.3, 0.1]], np.float32), np.array([[True, False], [True, False]])
    histogram = accumulated([(anomaly_map, mask)])
    assert histogram.auroc == pytest.approx(3 / 4)
    assert histogram.average_precision == pytest.approx(5 / 6)
    assert histogram.dice(0.5) == pytest.approx(0.5)  # one hit, one false call, one miss: 2 / 4
    assert histogram.dice(0.25) == pytest.approx(4 / 5)


def test_tumour_free_slices_count_in_the_curves_and_not_in_dice():
    tumour = (np.array([[0.9, 0.2]], np.float32), np.array([[True, False]]))
    free = (np.array([[0.95, 0.1]], np.float32), np.zeros((1, 2), bool))
    histogram = accumulated([tumour, free])
    assert histogram.dice(0.5) == 1.0
    assert histogram.auroc == pytest.approx(2 / 3)
    assert (histogram.pixels, histogram.tumour_slice_pixels) == (4, 2)


def test_brain_restricts_the_count():
    histogram = PixelHistogram()
    brain = np.array([[True, True, False]])
    histogram.accumulate(np.array([[0.9, 0.2, 0.99]], np.float32), np.array([[True, False, False]]), brain)
    assert histogram.pixels == 2
    assert histogram.auroc == 1.0


def test_histograms_add_to_the_histogram_of_everything():
    first, second = lesion(1), lesion(2)
    together, apart = accumulated([first, second]), accumulated([first]) + accumulated([second])
    assert np.array_equal(together.counts, apart.counts)


def test_certain_maps_keep_their_ends_apart():
    anomaly_map = np.array([[0.0, 1e-6, 1 - 1e-6, 1.0]], np.float32)
    assert accumulated([(anomaly_map, np.array([[False, False, False, True]]))]).auroc == 1.0


def test_one_class_gives_nan():
    histogram = accumulated([(np.full((2, 2), 0.7, np.float32), np.zeros((2, 2), bool))])
    assert np.isnan([histogram.auroc, histogram.average_precision, histogram.dice(0.5)]).all()


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.1])
def test_a_value_that_is_no_probability_is_refused(bad):
    with pytest.raises(ValueError, match="outside"):
        PixelHistogram().accumulate(np.array([[bad]], np.float32), np.array([[True]]))


def test_other_shapes_and_other_levels_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        PixelHistogram().accumulate(np.zeros((2, 2), np.float32), np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match="do not add"):
        PixelHistogram(64) + PixelHistogram(128)
    with pytest.raises(ValueError, match="at least 4"):
        PixelHistogram(3)

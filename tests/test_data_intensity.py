"""Scaling gives the floats and pixels of the plain formulas, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medad_core.data.intensity import Landmarks, percentiles, to_uint8

SMALL = st.sampled_from([np.dtype(kind) for kind in ("u1", "i1", "u2", "i2", ">u2", ">i2")])


@given(
    SMALL.flatmap(lambda kind: hnp.arrays(kind, st.integers(1, 60))),
    st.lists(st.floats(0, 100), min_size=1, max_size=4),
)
def test_counted_percentiles_are_those_of_sorted_values(values, percents):
    # As 64-bit numbers, because NumPy's own overflow between 16-bit values that are far apart.
    assert percentiles(values, percents) == np.percentile(values.astype(np.int64), percents).tolist()


@pytest.mark.parametrize("dtype", ["i2", "u2", "i4", "f4", "f8"])
def test_percentiles_of_a_brain_are_numpys(dtype):
    values = np.random.default_rng(0).gamma(4, 90, 200_000).astype(dtype)
    percents = (0.5, 50.0, 99.5)
    assert percentiles(values, percents) == np.percentile(values, percents).tolist()


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pictures_are_those_of_the_formula_inside_the_brain_and_0_outside(dtype, order):
    rng = np.random.default_rng(1)
    block = np.asarray(rng.integers(0, 250, (4, 30, 20)).astype(dtype), order=order)
    brain = np.zeros(block.shape, bool)
    brain[1, 5:20, 3:9] = rng.random((15, 6)) < 0.8
    brain[2, 12:29, 8:20] = True
    scaled = (block.astype(np.float32) - np.float32(30.5)) * np.float32(255 / (200.25 - 30.5))
    expected = np.where(brain, np.rint(np.clip(scaled, 0, 255)), 0).astype(np.uint8)
    np.testing.assert_array_equal(to_uint8(block, brain, Landmarks(30.5, 200.25)), expected)


def test_a_block_without_brain_is_black():
    block = np.full((2, 5, 5), 7, np.int16)
    assert not to_uint8(block, np.zeros(block.shape, bool), Landmarks(0.0, 5.0)).any()

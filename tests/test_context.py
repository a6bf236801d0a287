"""Slices with their neighbours: the right ones, whatever the range, and only for weights that were trained so."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from prefect_harness import WORDS, weights_for, with_stages, write_case

from medad_core.config import DataSettings, ScalingSettings, load_settings
from medad_core.data.cases import Case, VolumeRef
from medad_core.data.read import read_slices
from medad_core.errors import ConfigError, WeightsError
from medad_core.models.view import View
from medad_core.models.weights import DECODER, decoder_view, weights_folder
from medad_core.run.fingerprints import view_of
from medad_core.stages.rows import images_of, pictures_of, slice_rows

COUNT = 13


def volume(path: Path, edge_mm: float) -> VolumeRef:
    """Slices that all differ, around a brain of 12 × 12 pixels; slices are `edge_mm` apart."""
    values = np.zeros((16, 16, COUNT), np.float32)
    values[2:14, 2:14] = np.random.default_rng(0).uniform(100, 900, (12, 12, COUNT))
    nib.save(nib.Nifti1Image(values, np.diag([-1.0, -1.0, edge_mm, 1.0])), path)
    return VolumeRef(str(path))


def read(ref: VolumeRef, first: int, last: int, context_mm: float | None):
    scaling = ScalingSettings(kind="percentile", reference_first=0, reference_last=COUNT - 1)
    settings = DataSettings(first_slice=first, last_slice=last, scaling=scaling, context_mm=context_mm, checks="warn")
    return read_slices(Case("case", {"flair": ref}, None), settings)


@pytest.mark.parametrize(("edge_mm", "step"), [(1.0, 4), (2.0, 2), (3.0, 1), (5.0, 1), (9.0, 0)])
def test_neighbours_are_those_at_the_distance_in_mm_whatever_the_range(tmp_path, edge_mm, step):
    ref = volume(tmp_path / "x.nii.gz", edge_mm)
    whole = read(ref, 0, COUNT - 1, None).images
    for first, last in ((0, COUNT - 1), (3, 6), (0, 0), (COUNT - 1, COUNT - 1)):
        case = read(ref, first, last, 4.0)
        assert case.step == step
        assert slice_rows(case, "screen")["step"].to_pylist() == [step] * (last - first + 1)
        np.testing.assert_array_equal(case.images, whole[first : last + 1])
        if not step:
            assert case.pictures is case.images
            continue
        for number, slice_index in enumerate(range(first, last + 1)):
            below = slice_index - step if slice_index >= step else slice_index
            above = slice_index + step if slice_index + step < COUNT else slice_index
            expected = whole[[below, slice_index, above]]
            np.testing.assert_array_equal(case.pictures[number], expected)


@pytest.mark.parametrize("context_mm", [0.0, 1.0, 3.0, 30.0])
def test_rows_give_back_what_the_encoder_sees(tmp_path, context_mm):
    ref = volume(tmp_path / "x.nii", 1.0)
    for first, last in ((0, COUNT - 1), (4, 7), (5, 5)):
        case = read(ref, first, last, context_mm)
        table = slice_rows(case, "screen")
        if context_mm == 0:
            assert "step" not in table.column_names
            continue
        np.testing.assert_array_equal(images_of(table), case.images)
        expected = case.pictures if case.step else np.stack([case.images] * 3, axis=1)
        np.testing.assert_array_equal(pictures_of(table), expected)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """The project's own decoder and converter, as if they were trained with neighbours at 4 mm."""
    return weights_for(tmp_path_factory.mktemp("weights") / "w", View(context_mm=4.0))


def test_weights_say_the_context_and_another_is_refused(weights, tmp_path):
    plain = weights_for(tmp_path / "plain", View())
    assert decoder_view(plain) == View() and decoder_view(weights) == View(context_mm=4.0)
    assert decoder_view(weights_folder("embedded")) == View(context_mm=4.0, window_mm=182.0, image_pixels=252)
    words = [f"models.weights={weights}"]
    assert view_of(load_settings(None, words)) == view_of(load_settings(None, [*words, "data.context_mm=4"]))
    for other in ("0", "7"):
        with pytest.raises(WeightsError, match="were trained with 4"):
            view_of(load_settings(None, [*words, f"data.context_mm={other}"]))
    with pytest.raises(WeightsError, match="were trained with 0"):
        view_of(load_settings(None, [f"models.weights={plain}", "data.context_mm=4"]))


def test_scores_depend_on_the_neighbours_and_not_on_the_range(weights, tmp_path):
    write_case(tmp_path / "data", "BraTS2021_00000", seed=0)
    words = [*WORDS, f"models.weights={weights}", "llm.engine=transformers"]
    scores = {}
    plain = weights_for(tmp_path / "plain", View())
    for name, more in (
        ("narrow", []),
        ("wide", ["data.first_slice=57", "data.last_slice=63"]),
        ("alone", [f"models.weights={plain}"]),
    ):
        settings = load_settings(None, [*words, *more])
        run = with_stages(tmp_path / "data", tmp_path / name, settings, "slices", "maps")
        scores[name] = run.stage("maps").read().to_pandas().set_index("slice_index")["anomaly_score"]
    common = scores["narrow"].index
    np.testing.assert_allclose(scores["narrow"], scores["wide"][common], atol=1e-6)
    assert not np.allclose(scores["narrow"], scores["alone"])


VIEW_FIELDS = ("context_mm", "window_mm", "image_pixels")
UNMEANT = [(name, text) for name in VIEW_FIELDS for text in ("four", "-1", "nan", "1e9")]


@pytest.mark.parametrize(("name", "text"), [*UNMEANT, ("window_mm", "0.3")])
def test_a_view_that_means_nothing_is_refused(weights, tmp_path, name, text):
    from safetensors.torch import load_file, save_file

    save_file(load_file(weights / DECODER), tmp_path / DECODER, metadata={name: text})
    with pytest.raises(WeightsError, match=name):
        decoder_view(tmp_path)


def test_a_window_that_is_smaller_than_any_brain_is_not_trained():
    with pytest.raises(ConfigError, match="window_mm"):
        load_settings(None, ["train.window_mm=0.3"])

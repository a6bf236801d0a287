"""Windows around the brain: what they show, where maps of them lie, and that a brain elsewhere changes nothing else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from maps_to_learn import empty_example, finding_at
from prefect_harness import SIZE, WORDS, weights_for, with_stages, write_case

from medad_core.config import load_settings
from medad_core.data.window import brain_windows, cut_windows, frames_of, whole_square
from medad_core.errors import WeightsError
from medad_core.models.converter import Converter, placed
from medad_core.models.decoder import render_maps, upsample
from medad_core.models.encoder import encoder_fingerprint, load_encoder
from medad_core.models.loading import open_tensors
from medad_core.models.view import View
from medad_core.models.weights import (
    CONVERTER,
    DECODER,
    load_converter,
    load_decoder,
    save_converter,
    save_decoder,
    weights_folder,
)
from medad_core.run.fingerprints import maps_fingerprint, view_of
from medad_core.run.gather import find_cohort
from medad_core.training.features import encode_cohort
from medad_core.training.maps import draw, move

VIEW = View(context_mm=2.0, window_mm=56.0, image_pixels=280)
DOWN, RIGHT = 4, -3  # how far a brain is moved in its pictures


def test_a_window_is_centred_on_the_brain_and_never_smaller_than_it():
    brain = np.zeros((3, 20, 30), bool)
    brain[0, 5:12, 3:9] = True
    brain[1, :, 2:30] = True
    assert brain_windows(brain, 12).tolist() == [[2, 0, 12], [-4, 2, 28], [4, 9, 12]]


@pytest.mark.parametrize("dtype", [np.uint8, bool, np.float32])
def test_what_lies_beside_a_picture_is_nothing_and_the_rest_is_as_it_was(dtype):
    pictures = np.random.default_rng(0).integers(0, 2, (2, 3, 20, 30)).astype(dtype)
    cut = cut_windows(pictures, np.array([[-3, 4, 24], [5, 20, 24]]), 24)
    np.testing.assert_array_equal(cut[0, :, 3:23], pictures[0, :, :, 4:28])
    np.testing.assert_array_equal(cut[1, :, :15, :10], pictures[1, :, 5:, 20:])
    assert not cut[0, :, :3].any() and not cut[1, :, 15:].any() and not cut[1, :, :, 10:].any()
    assert cut.dtype == dtype


def test_a_wider_window_is_shrunk_to_the_size_of_the_others():
    cut = cut_windows(np.full((2, 20, 20), 200, np.uint8), np.array([[0, 0, 10], [0, 0, 20]]), 10)
    assert (cut == 200).all()
    disc = np.zeros((1, 261, 261), bool)
    disc[0, 100:111, 120:131] = True
    share = (176 / 261) ** 2
    assert abs(cut_windows(disc, np.array([[0, 0, 261]]), 176).sum() / disc.sum() - share) < 0.1 * share


def test_maps_lie_where_their_windows_lie():
    grid = torch.randn(3, 4, 6, 6)
    windows = np.array([[-3, 4, 24], [5, 20, 24], [0, -5, 30]])
    maps = render_maps(grid, 20, 30, windows)
    alone = upsample(grid, (24, 24)).sigmoid().mean(dim=1)
    torch.testing.assert_close(maps[0, :, 4:28], alone[0, 3:23])
    torch.testing.assert_close(maps[1, 5:, 20:], alone[1, :15, :10])
    assert not maps[0, :, :4].any() and not maps[1, :5].any()
    torch.testing.assert_close(render_maps(grid, 20, 30, whole_square(3, 20, 30)), render_maps(grid, 20, 30))


def test_the_converter_sees_a_map_where_its_frame_lies():
    grid = torch.randn(2, 4, 16, 16)
    frames = torch.from_numpy(frames_of(np.array([[24, 0, 24], [0, 0, 48]]), 48, 48))
    seen = placed(grid, frames, 49)
    torch.testing.assert_close(seen[1], placed(grid[1:], None, 49)[0], atol=1e-5, rtol=1e-4)
    assert not seen[0, 0, :24].any() and not seen[0, 0, :, 25:].any()
    torch.testing.assert_close(seen[0, 0, 24:, :25], upsample(grid[:1], (25, 25)).sigmoid().mean(dim=1)[0])


def test_frame_and_lesion_move_together():
    """Whatever is drawn, the lesion keeps its place in the frame, or its mirror image."""
    grid = np.random.default_rng(0).normal(size=(4, 8, 8)).astype("f")
    example = replace(empty_example((0.1, 0.2, 0.7), grid), finding=finding_at(0.3, 0.6))
    own = (example.finding.centroid - example.frame[:2]) / example.frame[2]
    for seed in range(20):
        moved = move(example, np.random.default_rng(seed))
        there = (moved.finding.centroid - moved.frame[:2]) / moved.frame[2]
        assert all(min(abs(there[axis] - own[axis]), abs(1 - there[axis] - own[axis])) < 1e-6 for axis in (0, 1))
        mirrored = [abs(there[axis] - own[axis]) > 1e-6 for axis in (0, 1)]
        back = np.flip(moved.grid, [axis + 1 for axis in (0, 1) if mirrored[axis]])
        np.testing.assert_array_equal(back, example.grid)


@pytest.mark.parametrize("frame", [(0, 0, 1), (0.1, 0.15, 0.76), (0.3, -0.1, 0.7)])
def test_a_drawn_lesion_is_seen_where_its_answer_says(frame):
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(100):
        drawn = draw(empty_example(frame), True, rng)
        if drawn.finding is None:  # an empty shape
            continue
        centroid = drawn.finding.centroid
        frames = torch.from_numpy(drawn.frame)[None]
        picture = placed(torch.from_numpy(drawn.grid.copy())[None], frames, 48)[0, 0]
        assert ((centroid > 0.05) & (centroid < 0.95)).all() and picture.max() > 0.1
        row, column = np.argwhere(picture.numpy() > picture.max().item() / 2).mean(axis=0) / 47
        seen += np.hypot(row - centroid[0], column - centroid[1]) < 0.15
    assert seen > 85


def test_no_lesion_is_drawn_where_a_frame_has_no_room_for_one():
    drawn = draw(empty_example((-0.06, -0.06, 0.13)), True, np.random.default_rng(0))
    assert drawn.finding is None and drawn.grid.max() < 0


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """The project's own decoder, as if it was trained with VIEW, and a new converter."""
    folder = weights_for(tmp_path_factory.mktemp("weights") / "w", VIEW)
    own = weights_folder("embedded")
    with open_tensors(own / CONVERTER) as tensors:
        fits = json.loads(tensors.metadata()["fits"])
    old = load_converter(own, fits)
    torch.manual_seed(0)
    save_converter(Converter(old.knowledge, old.positions.shape[1], 0.136), folder, fits, "chat")
    return folder


def screened(data: Path, out: Path, weights: Path, *words: str) -> Path:
    settings = load_settings(None, [*WORDS, f"models.weights={weights}", "llm.engine=transformers", *words])
    with_stages(data, out, settings, "slices", "maps", "prompts")
    return out


def maps_of(run: Path) -> dict[int, dict]:
    rows = pq.read_table(run / "maps", schema=None).to_pylist()
    return {row["slice_index"]: row for row in rows}


def test_a_brain_elsewhere_in_its_pictures_has_the_same_map_elsewhere(weights, tmp_path):
    write_case(tmp_path / "data", "BraTS2021_00000", seed=0)
    write_case(tmp_path / "moved", "BraTS2021_00000", seed=0)
    for path in (tmp_path / "moved").rglob("*.nii.gz"):
        image = nib.load(path)
        moved = np.roll(np.asarray(image.dataobj), (RIGHT, DOWN), (0, 1))  # stored LPS: columns, then rows
        nib.save(nib.Nifti1Image(moved, image.affine), path)
    here = maps_of(screened(tmp_path / "data", tmp_path / "here", weights))
    wide = maps_of(screened(tmp_path / "data", tmp_path / "wide", weights, "data.first_slice=58", "data.last_slice=63"))
    there = maps_of(screened(tmp_path / "moved", tmp_path / "there", weights))
    assert list(here) == list(there) and len(wide) == 6
    for number, row in here.items():
        assert row["grid_height"] == 20 and row["window_side"] == 56
        assert row["grid"] == there[number]["grid"] == wide[number]["grid"]
        assert row["anomaly_score"] == there[number]["anomaly_score"]
        for name, offset in (("window_top", DOWN), ("window_left", RIGHT), ("peak_y", DOWN), ("peak_x", RIGHT)):
            assert there[number][name] == row[name] + offset
        assert 0 <= row["peak_y"] < SIZE and 0 <= row["peak_x"] < SIZE
    tokens = pq.read_table(tmp_path / "here" / "prompts")["tokens"].to_pylist()
    assert set(tokens) == {10}


def test_pixels_that_are_no_whole_number_of_patches_are_refused():
    with pytest.raises(WeightsError, match="no whole number of its patches of 14"):
        encoder_fingerprint("dinov2-small", 225)


def test_weights_of_another_size_of_pictures_do_not_fit(weights, tmp_path):
    shutil.copytree(weights, tmp_path / "w")
    own = weights_folder("embedded")
    with open_tensors(own / DECODER) as tensors:
        fits = json.loads(tensors.metadata()["fits"])
    save_decoder(load_decoder(own, fits), tmp_path / "w", fits, VIEW)
    settings = load_settings(None, [f"models.weights={tmp_path / 'w'}"])
    assert view_of(settings) == VIEW
    with pytest.raises(WeightsError, match="encoder_input is 280 px"):
        maps_fingerprint(settings)


def test_mirrored_features_are_those_of_the_mirrored_volume(tmp_path):
    write_case(tmp_path / "data", "BraTS2021_00000", seed=0)
    write_case(tmp_path / "flipped", "BraTS2021_00000", seed=0)
    for path in (tmp_path / "flipped").rglob("*.nii.gz"):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine), path)
    view = ("train.window_mm=56", "train.context_mm=2", "train.first_slice=60", "train.last_slice=62")
    settings = load_settings(None, [*WORDS, *view, "train.mirrored=true"])
    encoder = load_encoder("dinov2-small")
    cases = []
    for name in ("data", "flipped"):
        cohort = find_cohort(tmp_path / name, settings.data)
        cases += encode_cohort(cohort, cohort.members, settings, encoder, tmp_path / "work", lambda *_: None)[0]
    case, flipped = cases
    np.testing.assert_array_equal(case.twin.masks, flipped.masks)
    np.testing.assert_array_equal(case.twin.features, flipped.features)
    np.testing.assert_array_equal(flipped.twin.features, case.features)
    np.testing.assert_array_equal(case.twin.windows, flipped.windows)
    assert not np.array_equal(case.features, flipped.features)

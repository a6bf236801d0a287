"""The up-sampler of a trial: what a new one shows, what it learns from, and the tables of `measure_upsampler`."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from measure_upsampler import print_table
from up_sampler import VARIANTS, Shown, Trial, UpSampler

from medad_core.config import load_settings
from medad_core.models.decoder import render_maps
from medad_core.training.decoder import decode_case
from medad_core.training.features import TrainingCase, mirror

SIDE = 126


def drawn_case(number: int) -> Shown:
    """12 slices, 6 with a bright disc; features are noise, shifted along one axis by the disc's share of a patch."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:SIDE, :SIDE]
    masks = np.zeros((12, SIDE, SIDE), bool)
    for index in range(6, 12):
        row, column = rng.integers(25, 100, 2)
        masks[index] = (y - row) ** 2 + (x - column) ** 2 < rng.integers(9, 15) ** 2
    images = (90 + 80 * masks + rng.normal(0, 5, masks.shape)).astype(np.uint8)
    share = F.interpolate(torch.from_numpy(masks).float().unsqueeze(1), size=18, mode="area")[:, 0].numpy()
    features = rng.normal(size=(12, 4, 18, 18, 24)).astype(np.float16)
    features[..., 0] += 8 * share[:, None]
    case = TrainingCase(
        f"case_{number}",
        np.arange(60, 72),
        features,
        images,
        np.ones(masks.shape, bool),
        masks,
        1.0,
        f"case_{number}",
        mirrored=np.flip(features, axis=-2),
    )
    return Shown(case, np.stack([images] * 3, axis=1))


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    own = [drawn_case(number) for number in range(4)]
    twins = [Shown(one.case.twin, np.ascontiguousarray(mirror(one.windows))) for one in own]
    text = F.normalize(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    settings = load_settings(None, ["train.decoder.steps=5", "train.decoder.learning_rate=0.01"])
    return Trial(own, twins, [["case_0", "case_1"], ["case_2", "case_3"]], text, settings, tmp_path)


def test_a_new_up_sampler_shows_what_bilinear_rendering_shows():
    grid = 4 * torch.randn(3, 4, 18, 18, generator=torch.Generator().manual_seed(0))
    new = UpSampler(VARIANTS["pictures"], 4, 24)(grid, torch.rand(3, 3, SIDE, SIDE), torch.zeros(0))

    assert torch.allclose(render_maps(new, SIDE, SIDE), render_maps(grid, SIDE, SIDE), atol=1e-5)


def test_a_head_learns_from_maps_of_patients_that_their_decoder_has_not_seen(trial):
    lessons = trial.lessons(0)

    assert sorted(lesson.shown.case.case_id for lesson in lessons) == ["case_2", "case_2", "case_3", "case_3"]
    unseen = decode_case(trial.decoder(1), trial.own[2].case)
    assert np.array_equal(lessons[0].grids, unseen)
    assert not np.array_equal(unseen, decode_case(trial.decoder(0), trial.own[2].case))


def test_a_table_shows_the_gain_over_its_first_row(trial, capsys):
    drawn = {shown.case.case_id: np.where(shrunk(shown), 2, -2).astype(np.float16) for shown in trial.own}

    print_table(trial, trial.own, {"wrong": {name: -grid for name, grid in drawn.items()}, "right": drawn}, (60, 100))

    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[3:]] == ["| wrong", "| right", "| gain"]
    wrong, right, gain = (float(row[1].split()[0]) for row in rows[3:])
    assert (wrong, right, gain) == (0.5, 1.0, 0.5)  # every slice is full of what is wrong, and scores alike


def shrunk(shown: Shown) -> np.ndarray:
    """Where most of a patch is tumour, (N, 1, 18, 18) bool."""
    return shown.case.cover(18)[:, None] > 0.5

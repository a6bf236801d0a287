"""Baselines: each learns what is normal and finds what is not, on drawn slices and with the real encoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medad_core.baselines import build
from medad_core.baselines.autoencoder import Features
from medad_core.baselines.detector import normal_limit, smoothed, squashed
from medad_core.baselines.memory_autoencoder import Memory
from medad_core.baselines.patchcore import greedy_coreset
from medad_core.config import BaselineTraining
from medad_core.errors import MedadError
from medad_core.models.encoder import load_encoder

SMALL = BaselineTraining(image_size=32, epochs=16, batch_size=8, learning_rate=3e-3, memory_slots=50, coreset=300)
SEEDED = ("autoencoder", "masked-autoencoder", "memory-autoencoder", "patchcore")
TRAINED = (*SEEDED, "anomaly-dino")


@dataclass(frozen=True)
class Drawn:
    """Slices 64 × 64: a disc of brain with bands, some with a bright blob."""

    images: np.ndarray
    blobs: np.ndarray
    encoded: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, some: slice) -> Drawn:
        return Drawn(self.images[some], self.blobs[some], self.encoded[some])

    @property
    def disc(self) -> np.ndarray:
        y, x = np.mgrid[:64, :64]
        return (y - 32) ** 2 + (x - 32) ** 2 < 26**2

    def pictures(self, at, size):
        return F.interpolate(
            torch.from_numpy(self.images[list(at)].astype(np.float32))[:, None] / 255, size=(size, size), mode="area"
        )

    def brain(self, at, size):
        disc = (
            F.interpolate(torch.from_numpy(self.disc.astype(np.float32))[None, None], size=(size, size), mode="area")[
                :, 0
            ]
            > 0.5
        )
        return disc.expand(len(at), -1, -1)

    def features(self, at):
        return self.encoded[list(at)]

    def native(self, at):
        return self.images[at], self.disc


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("dinov2-small")


def drawn(encoder, count: int, tumour: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    disc = (y - 32) ** 2 + (x - 32) ** 2 < 26**2
    images, blobs = np.zeros((count, 64, 64)), np.zeros((count, 64, 64), bool)
    for index in range(count):
        images[index] = 90 + 25 * np.sin(y / 5 + rng.uniform(0, 0.6)) + rng.normal(0, 4, (64, 64))
        if index < tumour:
            row, column = rng.integers(20, 44, 2)
            blobs[index] = (y - row) ** 2 + (x - column) ** 2 < 36
            images[index][blobs[index]] += 90
    pictures = np.where(disc, np.clip(images, 1, 255), 0).astype(np.uint8)
    return Drawn(
        pictures,
        blobs,
        torch.cat([encoder.encode(pictures[start : start + 16]) for start in range(0, count, 16)]).clone(),
    )


@pytest.fixture(scope="module")
def normal(encoder):
    return drawn(encoder, 48, 0, seed=0)


@pytest.fixture(scope="module")
def mixed(encoder):
    return drawn(encoder, 24, 12, seed=1)


def scores_and_maps(detector, slices):
    found = list(detector.score(slices))
    return np.concatenate([batch.scores for batch in found]), torch.cat([batch.maps for batch in found])


@pytest.fixture(scope="module")
def fitted(encoder, normal):
    """Every detector, fitted once, with the steps of progress it told."""
    made = {}
    for name in (*TRAINED, "brightness"):
        settings = SMALL.model_copy(update={"epochs": 8}) if name == "autoencoder" else SMALL  # whose epochs are long
        detector, steps = build(name, settings, encoder, seed=0, device="cpu"), []
        detector.fit(normal, lambda done, of, steps=steps: steps.append((done, of)))
        made[name] = detector, steps
    return made


@pytest.mark.parametrize("name", [*TRAINED, "brightness"])
def test_a_blob_never_seen_in_training_scores_higher_and_lights_up(name, fitted, mixed):
    detector, steps = fitted[name]
    scores, maps = scores_and_maps(detector, mixed)
    assert scores.shape == (24,) and maps.min() >= 0 and maps.max() <= 1
    above = (scores[:12, None] > scores[None, 12:]).mean()
    assert above > 0.9, above
    blobs = (
        F.interpolate(
            torch.from_numpy(mixed.blobs[:12].astype(np.float32))[:, None], size=maps.shape[-2:], mode="area"
        )[:, 0]
        > 0.5
    )
    inside = mixed.brain(range(12), maps.shape[-1])
    # Features of the last block are of the whole picture: a blob on a drawn disc moves all of its patches.
    normal = maps[12:][inside] if name == "anomaly-dino" else maps[:12][inside & ~blobs]
    assert maps[:12][blobs].mean() > 1.2 * normal.mean()
    assert name == "brightness" or steps[-1][0] == steps[-1][1]


@pytest.mark.parametrize("name", TRAINED)
def test_maps_of_normal_slices_stay_below_a_half_but_for_few_pixels(name, fitted, normal):
    _, maps = scores_and_maps(fitted[name][0], normal)
    assert (maps[normal.brain(range(48), maps.shape[-1])] > 0.5).float().mean() < 0.02


@pytest.mark.parametrize("name", SEEDED)
def test_the_same_seed_gives_the_same_scores_and_another_others(name, encoder, normal, mixed):
    few = SMALL.model_copy(update={"epochs": 1, "coreset": 40})
    learned, seen = normal[:16], mixed[:8]
    scores = []
    for seed in (3, 3, 4):
        detector = build(name, few, encoder, seed, "cpu")
        detector.fit(learned)
        scores.append(scores_and_maps(detector, seen)[0])
    np.testing.assert_array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


@pytest.mark.parametrize("name", TRAINED)
def test_nothing_to_learn_from_is_an_error_that_says_what_to_do(name, encoder, normal):
    with pytest.raises(MedadError, match="no tumour-free slices to train on; add cases"):
        build(name, SMALL, encoder, 0, "cpu").fit(normal[:0])


def unit(patches):
    """Of mean 0, then of length 1."""
    centred = patches - patches.mean(-1, keepdim=True)
    return centred / centred.norm(dim=-1, keepdim=True)


def test_anomaly_dino_is_the_cosine_distance_to_the_nearest_normal_patch(encoder, normal, mixed):
    detector = build("anomaly-dino", SMALL, encoder, 0, "cpu")
    detector.fit(normal)
    scores, _ = scores_and_maps(detector, mixed)
    kept = [index for index in range(len(normal)) if index % 5]  # every fifth gives the limit of normal errors
    cover = F.interpolate(normal.brain([0], 112).unsqueeze(1).float(), size=(16, 16), mode="area").flatten() >= 0.5
    memory = unit(normal.encoded[kept][:, -1].flatten(1, 2)[:, cover].flatten(0, 1))
    for index in (0, 5, 20):
        patches = unit(mixed.encoded[index, -1].flatten(0, 1)[cover])
        distance = 1 - (patches @ memory.T).max(1).values
        expected = distance.topk(max(1, round(0.01 * len(distance)))).values.mean()
        assert scores[index] == pytest.approx(float(expected), abs=1e-5)


def test_a_learning_rate_that_explodes_is_named(encoder, normal):
    wild = SMALL.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(MedadError, match=r"lower reproduce\.baselines\.learning_rate"):
        build("memory-autoencoder", wild, encoder, 0, "cpu").fit(normal)


def test_perceptual_features_are_those_of_the_encoders_first_tap(encoder):
    pictures = np.random.default_rng(0).integers(0, 256, (2, 224, 224), dtype=np.uint8)
    features = Features(encoder, 224).eval()(torch.from_numpy(pictures)[:, None] / 255)
    torch.testing.assert_close(features, encoder.encode(pictures)[:, 0].movedim(-1, 1).float(), atol=1e-4, rtol=1e-3)
    assert len(encoder.family.blocks(encoder.model)) == 12, "the encoder itself keeps its blocks"


def test_gradients_reach_the_picture_through_the_features_and_stop_at_their_weights(encoder, mixed):
    features = Features(encoder, 112).eval().requires_grad_(False)
    picture = mixed.pictures(range(1), 32).requires_grad_(True)
    features(picture).sum().backward()
    assert picture.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in features.parameters())


@pytest.mark.parametrize("slots", [500, 2000])
def test_memory_is_addressed_by_some_slots_that_sum_to_one_and_learns(slots):
    torch.manual_seed(0)
    memory, codes = Memory(slots), torch.randn(2, 128, 4, 4, requires_grad=True)
    made, address = memory(codes)
    used = address > 0
    assert used.float().mean() < 0.1 and used.any(-1).float().mean() > 0.7
    torch.testing.assert_close(address.sum(-1), used.any(-1).float())
    made.square().sum().backward()
    assert codes.grad.abs().sum() > 0 and memory.slots.grad.abs().sum() > 0


def test_addresses_at_or_below_the_limit_are_cut_to_nothing_and_the_rest_is_shared_out():
    memory = Memory(4)  # λ = 1.25 / 4
    with torch.no_grad():
        memory.slots.copy_(torch.eye(4, 128))
    _, address = memory(torch.eye(1, 128)[..., None, None] * 7)
    plain = torch.tensor([1.0, 0, 0, 0]).softmax(0)  # cosines 1, 0, 0, 0: 0.475 and three times 0.175
    assert plain[1] < 0.3125 < plain[0]
    torch.testing.assert_close(address[0, 0, 0], torch.tensor([1.0, 0, 0, 0]))


def test_training_error_is_measured_against_the_mean_training_picture(encoder, fitted, normal):
    hardly = build(
        "memory-autoencoder", SMALL.model_copy(update={"epochs": 1, "learning_rate": 1e-9}), encoder, 0, "cpu"
    )
    hardly.fit(normal)
    pictures = normal.pictures(range(48), 32).numpy()
    yardstick = ((pictures - pictures.mean(0)) ** 2).mean()
    assert hardly._of_the_mean_picture(normal) == pytest.approx(yardstick, rel=1e-4)
    assert fitted["memory-autoencoder"][0].training_error < hardly.training_error / 2
    assert fitted["patchcore"][0].training_error is None


def test_training_error_leaves_out_what_else_the_network_is_charged_for(encoder, normal, monkeypatch):
    settings = SMALL.model_copy(update={"epochs": 1, "learning_rate": 1e-9})
    monkeypatch.setattr("medad_core.baselines.memory_autoencoder.ENTROPY", 0.0)
    free = build("memory-autoencoder", settings, encoder, 0, "cpu")
    free.fit(normal)
    monkeypatch.setattr("medad_core.baselines.memory_autoencoder.ENTROPY", 1e3)
    charged = build("memory-autoencoder", settings, encoder, 0, "cpu")
    charged.fit(normal)
    assert charged.training_error == pytest.approx(free.training_error, rel=1e-3)


@pytest.mark.parametrize("name", ["autoencoder", "memory-autoencoder"])
def test_a_batch_of_one_is_normalised_in_training_as_in_scoring(name, encoder, normal):
    detector = build(name, SMALL.model_copy(update={"batch_size": 1}), encoder, 0, "cpu")
    pictures, network = normal.pictures([0], 32), detector.network
    with torch.no_grad():
        trained, scored = (network.train(mode)(pictures) for mode in (True, False))
    for one, other in zip(
        trained if isinstance(trained, tuple) else [trained],
        scored if isinstance(scored, tuple) else [scored],
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_patches_of_the_masked_autoencoder_know_their_place(encoder):
    network = build("masked-autoencoder", SMALL, encoder, 0, "cpu").network
    for positions in (network.vit.embeddings.position_embeddings, network.decoder.decoder_pos_embed):
        apart = torch.cdist(positions[0, 1:], positions[0, 1:]) + 9 * torch.eye(16)
        assert apart.min() > 0.5
    assert network.decoder.mask_token.abs().sum() > 0


def test_masked_views_show_every_patch_once_and_hide_it_three_times(encoder):
    detector = build("masked-autoencoder", SMALL, encoder, 0, "cpu")
    seen = []
    network = detector.network.eval()
    original = network.forward
    network.forward = lambda **kwargs: seen.append(original(**kwargs)) or seen[-1]
    with torch.no_grad():
        detector.errors(torch.rand(1, 1, 32, 32))
    hidden = torch.stack([out.mask[0] for out in seen])
    assert hidden.shape[0] == 4
    assert (hidden.sum(0) == 3).all()


def test_coreset_covers_what_a_random_choice_leaves_far_away():
    rng = torch.Generator().manual_seed(0)
    points = torch.cat([torch.randn(500, 16, generator=rng), 30 + torch.randn(3, 16, generator=rng)])
    chosen = greedy_coreset(points, 20, seed=0)
    assert torch.cdist(points, chosen).min(1).values.max() < 8
    assert len(chosen) == 20


def test_the_limit_becomes_a_half_and_order_is_kept():
    limit = normal_limit(iter([torch.arange(1000.0)]))
    assert limit == pytest.approx(994.005)
    values = squashed(torch.tensor([0.0, limit, 1e9]), limit)
    assert values.tolist() == pytest.approx([0, 0.5, 1], abs=1e-5)


def test_smoothing_keeps_the_sum_away_from_the_border():
    dot = torch.zeros(1, 112, 112)
    dot[0, 56, 56] = 1
    assert smoothed(dot).sum() == pytest.approx(1, abs=1e-5)
    assert smoothed(dot)[0, 56, 56] == pytest.approx(1 / (2 * np.pi * 4), rel=0.05)  # σ = 2 at 112

"""Decoder training on cached features: focal and dice loss, half of every batch tumour-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medad_core.config.train import DecoderTraining
from medad_core.models.decoder import Decoder, focal_dice_loss
from medad_core.training.features import TrainingCase

LOSS_SIZE = 56  # pixels a side at which the loss is taken: 3.5 a patch, beyond what a 16×16 grid can draw, and 16 times cheaper than 224


def train_decoder(cases: Sequence[TrainingCase], text: Tensor, settings: DecoderTraining, seed: int) -> Decoder:
    """Train a decoder on the slices of `cases`. The same seed and cases give the same decoder on the same machine."""
    taps, width = cases[0].features.shape[1], cases[0].features.shape[-1]
    torch.manual_seed(seed)
    decoder = Decoder(taps, width, text)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=settings.steps, pct_start=0.1)
    for features, masks in _batches(cases, settings, seed):
        loss = focal_dice_loss(decoder(features), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return decoder.eval().requires_grad_(False)


def _batches(cases: Sequence[TrainingCase], settings: DecoderTraining, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    masks = [shrink_masks(case.masks) for case in cases]
    flags = [case.has_tumour for case in cases]
    tumour = [(case, slice_) for case, flag in enumerate(flags) for slice_ in np.flatnonzero(flag)]
    normal = [(case, slice_) for case, flag in enumerate(flags) for slice_ in np.flatnonzero(~flag)]
    rng = np.random.default_rng(seed)
    half = settings.batch_size // 2
    for _ in range(settings.steps):
        sizes = (half, half) if settings.batch_size % 2 == 0 else rng.permutation([half, half + 1])
        picks = [pool[index] for pool, size in zip((tumour, normal or tumour), sizes, strict=True) for index in rng.integers(len(pool), size=size)]
        yield (
            torch.from_numpy(np.stack([cases[case].features[slice_] for case, slice_ in picks])).float(),
            torch.stack([masks[case][slice_] for case, slice_ in picks]),
        )


def shrink_masks(masks: np.ndarray) -> Tensor:
    """(N, H, W) bool to the covered share (N, 56, 56) float32 of the square picture that the encoder sees."""
    from medad_core.models.encoder import pad_to_square

    return F.interpolate(pad_to_square(torch.from_numpy(masks.astype(np.float32)).unsqueeze(1)), size=(LOSS_SIZE, LOSS_SIZE), mode="area")[:, 0]


@torch.inference_mode()
def decode_case(decoder: Decoder, case: TrainingCase, batch_size: int = 16) -> np.ndarray:
    """Grids (N, taps, gh, gw) float16 of all slices of a case."""
    starts = range(0, len(case.features), batch_size)
    return torch.cat([decoder(torch.from_numpy(case.features[start : start + batch_size].astype(np.float32))).half() for start in starts]).numpy()

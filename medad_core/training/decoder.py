"""Decoder training on cached features: focal and dice loss, half of every batch tumour-free."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medad_core.config.train import DecoderTraining
from medad_core.models.decoder import Decoder, focal_dice_loss
from medad_core.training.features import TrainingCase
from medad_core.training.loop import CPU, Arithmetic, Loop

# Pixels a side at which the loss is taken: 3.5 a patch, more than a 16×16 grid can draw, and 16 times cheaper than 224.
LOSS_SIZE = 56


def train_decoder(
    cases: Sequence[TrainingCase],
    text: Tensor,
    settings: DecoderTraining,
    seed: int,
    checkpoint: Path,
    *,
    arithmetic: Arithmetic = CPU,
    validate: Callable[[int, Decoder], dict[str, float] | None] = lambda *_: None,
    until: int | None = None,
) -> Decoder:
    """Train a decoder on the slices of `cases`, to the end of the schedule or to its step `until`.

    `text` (2, text width) are the encoded sentences. Training resumes from `checkpoint`, which stays: at its end there
    is nothing left to train. `validate(steps, decoder)` gets the decoder at every checkpoint, and gives its
    `validation_loss` or None. The same seed and cases give the same decoder on the same machine.
    """
    taps = cases[0].features.shape[1]
    width = cases[0].features.shape[-1]
    torch.manual_seed(seed)
    decoder = Decoder(taps, width, text)
    loop = Loop(decoder, settings, seed, arithmetic, rise=0.1)
    loop.resume(checkpoint)
    loop.run(
        lambda first: _batches(cases, settings, seed, first, arithmetic.device),
        lambda batch: focal_dice_loss(decoder(batch[0]), batch[1]),
        checkpoint,
        lambda steps: validate(steps, decoder.eval()),
        lambda *_: None,
        until,
    )
    return decoder.eval().requires_grad_(False)


def _batches(
    cases: Sequence[TrainingCase], settings: DecoderTraining, seed: int, first: int, device: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features and masks of the batches from number `first` on, half of them tumour-free.

    Slices with left and right exchanged are drawn as often as the others, where they are encoded.
    """
    cases = [*cases, *(case.twin for case in cases if case.twin is not None)]
    masks = [shrink_masks(case.seen(case.masks)) for case in cases]
    for picks in islice(_picks([case.has_tumour for case in cases], settings.batch_size, seed), first, None):
        features = torch.from_numpy(np.stack([cases[case].features[slice_] for case, slice_ in picks]))
        yield features.to(device).float(), torch.stack([masks[case][slice_] for case, slice_ in picks]).to(device)


def _picks(flags: Sequence[np.ndarray], batch_size: int, seed: int) -> Iterator[list[tuple[int, int]]]:
    """(case, slice) of every batch, without end."""
    tumour = [(case, slice_) for case, flag in enumerate(flags) for slice_ in np.flatnonzero(flag)]
    normal = [(case, slice_) for case, flag in enumerate(flags) for slice_ in np.flatnonzero(~flag)]
    pools = (tumour, normal or tumour)
    rng = np.random.default_rng(seed)
    half = batch_size // 2
    while True:
        sizes = (half, half) if batch_size % 2 == 0 else rng.permutation([half, half + 1])
        picks: list[tuple[int, int]] = []
        for pool, size in zip(pools, sizes, strict=True):
            picks += [pool[index] for index in rng.integers(len(pool), size=size)]
        yield picks


def shrink_masks(masks: np.ndarray) -> Tensor:
    """Masks of what the encoder sees, (N, S, S) bool, to the covered share (N, 56, 56) float32."""
    return F.interpolate(
        torch.from_numpy(masks.astype(np.float32)).unsqueeze(1), size=(LOSS_SIZE, LOSS_SIZE), mode="area"
    )[:, 0]


@torch.inference_mode()
def decode_case(decoder: Decoder, case: TrainingCase, batch_size: int = 16) -> np.ndarray:
    """Grids (N, taps, gh, gw) float16 of all slices of a case."""
    device = decoder.text.device
    grids = []
    for start in range(0, len(case.features), batch_size):
        copy = np.array(case.features[start : start + batch_size])  # the file is mapped read-only
        features = torch.from_numpy(copy).to(device).float()
        grids.append(decoder(features).half().cpu())
    return torch.cat(grids).numpy()

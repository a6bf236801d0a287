"""PatchCore (Roth et al. 2022) on the frozen encoder's features: how far is each patch from the nearest normal one?

One decision: only patches of the brain are remembered and judged. Half of a slice is black, and black is always near black.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medad_core.baselines.detector import (
    LIMIT_SLICES,
    SCORE_BATCH,
    Progress,
    Scored,
    SliceSet,
    batches,
    normal_limit,
    require,
    smoothed,
    spread,
    squashed,
)

TAPS = (1, 2)  # the second and third of four: the paper's middle layers
POOL = 40_000  # patches among which the coreset is chosen
PROJECTION = 128
NEIGHBOURS = 9
HELD_OUT = 5  # every fifth slice is not remembered: it says how far normal patches are
MAP_SIZE = 112


class PatchCore:
    """See `Detector`."""

    training_error = None

    def __init__(self, coreset: int, seed: int, device: str) -> None:
        self.coreset, self.seed, self.device = coreset, seed, device
        self.memory = torch.zeros(0)
        self.limit = 1.0

    @torch.no_grad()
    def fit(self, normal: SliceSet, progress: Progress = lambda *_: None) -> None:
        """See `Detector`."""
        require(normal)
        held_out = list(range(0, len(normal), HELD_OUT)) if len(normal) >= 2 * HELD_OUT else list(range(len(normal)))
        remembered = sorted(set(range(len(normal))) - set(held_out)) or held_out
        self.memory = greedy_coreset(self._pool(normal, remembered), self.coreset, self.seed).to(self.device)
        progress(1, 2)
        places = [held_out[at] for at in spread(len(held_out), LIMIT_SLICES)]
        runs = (places[at.start : at.stop] for at in batches(len(places), SCORE_BATCH))
        self.limit = normal_limit(
            self._maps(*self._distances(normal, at)[:2])[normal.brain(at, MAP_SIZE)] for at in runs
        )
        progress(2, 2)

    @torch.no_grad()
    def score(self, slices: SliceSet) -> Iterator[Scored]:
        """See `Detector`."""
        for at in batches(len(slices), SCORE_BATCH):
            distances, inside, patches = self._distances(slices, at)
            yield Scored(
                self._scores(distances, inside, patches),
                squashed(self._maps(distances, inside), self.limit) * slices.brain(at, MAP_SIZE),
            )

    def _pool(self, normal: SliceSet, places: list[int]) -> Tensor:
        """At most `POOL` brain patches, as many of each slice."""
        rng = torch.Generator().manual_seed(self.seed)
        share = max(1, POOL // len(places))
        chosen = []
        for at in batches(len(places), SCORE_BATCH):
            patches, inside = self._patches(normal, places[at.start : at.stop])
            chosen += [
                one[own][torch.randperm(int(own.sum()), generator=rng)[:share]]
                for one, own in zip(patches, inside, strict=True)
            ]
        return torch.cat(chosen)

    def _patches(self, slices: SliceSet, at) -> tuple[Tensor, Tensor]:
        """Patches (n, P, d), averaged with their neighbours, of two taps; and which lie in the brain (n, P)."""
        features = slices.features(at)[:, list(TAPS)].flatten(0, 1).movedim(-1, 1)
        around = F.avg_pool2d(features, 3, stride=1, padding=1, count_include_pad=False)
        rows, columns = around.shape[-2:]
        patches = around.unflatten(0, (len(at), len(TAPS))).flatten(1, 2).flatten(2).transpose(1, 2)
        cover = F.interpolate(slices.brain(at, MAP_SIZE).unsqueeze(1).float(), size=(rows, columns), mode="area")
        return patches.contiguous(), cover.flatten(1) >= 0.5

    def _distances(self, slices: SliceSet, at) -> tuple[Tensor, Tensor, Tensor]:
        """Distance of every patch to the nearest remembered one (n, P), which lie in the brain (n, P), and the patches themselves."""
        patches, inside = self._patches(slices, at)
        nearest = [torch.cdist(one.to(self.device), self.memory).min(1).values.cpu() for one in patches]
        return torch.stack(nearest), inside, patches

    def _maps(self, distances: Tensor, inside: Tensor) -> Tensor:
        side = round(distances.shape[1] ** 0.5)
        grid = (distances * inside).unflatten(1, (side, side)).unsqueeze(1)
        return smoothed(F.interpolate(grid, size=(MAP_SIZE, MAP_SIZE), mode="bilinear", align_corners=False)[:, 0])

    def _scores(self, distances: Tensor, inside: Tensor, patches: Tensor) -> np.ndarray:
        """The largest distance in the brain, weighed down where its nearest patch is as rare as itself (the paper's equation 7)."""
        furthest, worst = (distances * inside).max(1)
        scores = [
            self._weighed(patches[row, int(at)].to(self.device), float(d))
            for row, (d, at) in enumerate(zip(furthest, worst, strict=True))
        ]
        return np.array(scores, np.float64)

    def _weighed(self, patch: Tensor, distance: float) -> float:
        nearest = self.memory[torch.cdist(patch[None], self.memory)[0].argmin()]
        around = (
            torch.cdist(nearest[None], self.memory)[0].topk(min(NEIGHBOURS, len(self.memory)), largest=False).indices
        )
        gaps = torch.cdist(patch[None], self.memory[around])[0].double()
        return float(distance * (1 - gaps.softmax(0)[0])) if len(around) > 1 else distance


def greedy_coreset(patches: Tensor, count: int, seed: int) -> Tensor:
    """`count` of the patches (N, d) that leave none far away (k-centre, greedily), measured after a random projection to 128 numbers."""
    if len(patches) <= count:
        return patches
    rng = torch.Generator().manual_seed(seed)
    small = patches @ (
        torch.randn(patches.shape[1], min(PROJECTION, patches.shape[1]), generator=rng) / PROJECTION**0.5
    )
    squares = (small**2).sum(1)
    chosen = [int(torch.randint(len(small), (1,), generator=rng))]
    nearest = torch.full((len(small),), torch.inf)
    for _ in range(count - 1):
        last = chosen[-1]
        nearest = torch.minimum(nearest, squares + squares[last] - 2 * (small @ small[last]))
        chosen.append(int(nearest.argmax()))
    return patches[chosen]

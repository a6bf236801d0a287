"""PatchCore (Roth et al. 2022) on the frozen encoder's features: how far is each patch from the nearest normal one?

One decision: only patches of the brain are remembered and scored. Half of a slice is black, and black is always near
black.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medad_core.baselines.detector import (
    LIMIT_SLICES,
    SCORE_BATCH,
    Scored,
    SliceSet,
    batches,
    normal_limit,
    require,
    smoothed,
    spread,
    squashed,
)
from medad_core.progress import ReportProgress

TAPS = (1, 2)  # the second and third of four: the paper's middle layers
POOL = 40_000  # patches among which the coreset is chosen
PROJECTION = 128
NEIGHBOURS = 9
HELD_OUT = 5  # every fifth slice is not remembered: it says how far normal patches are
MAP_SIZE = 112


class PatchCore:
    """See `Detector`."""

    training_error = None
    pool = POOL

    def __init__(self, coreset: int, seed: int, device: str) -> None:
        self.coreset = coreset
        self.seed = seed
        self.device = device
        self.memory = torch.zeros(0)
        self.limit = 1.0

    @torch.no_grad()
    def fit(self, normal: SliceSet, progress: ReportProgress = lambda *_: None) -> None:
        """See `Detector`."""
        require(normal)
        everyone = range(len(normal))
        held_out = list(everyone[::HELD_OUT]) if len(normal) >= 2 * HELD_OUT else list(everyone)
        remembered = sorted(set(everyone) - set(held_out)) or held_out
        self.memory = self._chosen(self._pool(normal, remembered)).to(self.device)
        progress(1, 2)
        chosen = [held_out[at] for at in spread(len(held_out), LIMIT_SLICES)]
        runs = (chosen[at.start : at.stop] for at in batches(len(chosen), SCORE_BATCH))
        self.limit = normal_limit(self._brain_errors(normal, run) for run in runs)
        progress(2, 2)

    @torch.no_grad()
    def score(self, slices: SliceSet) -> Iterator[Scored]:
        """See `Detector`."""
        for at in batches(len(slices), SCORE_BATCH):
            distances, inside, patches = self._distances(slices, at)
            maps = squashed(self._maps(distances, inside), self.limit) * slices.brain(at, MAP_SIZE)
            yield Scored(self._scores(distances, inside, patches), maps)

    def _chosen(self, patches: Tensor) -> Tensor:
        """Those of the patches (N, d) that are remembered."""
        return greedy_coreset(patches, self.coreset, self.seed)

    def _brain_errors(self, slices: SliceSet, at: Sequence[int]) -> Tensor:
        """Errors (n,) of the brain's pixels."""
        distances, inside, _ = self._distances(slices, at)
        return self._maps(distances, inside)[slices.brain(at, MAP_SIZE)]

    def _pool(self, normal: SliceSet, places: list[int]) -> Tensor:
        """At most `pool` brain patches, as many of each slice."""
        rng = torch.Generator().manual_seed(self.seed)
        share = max(1, self.pool // len(places))
        chosen = []
        for at in batches(len(places), SCORE_BATCH):
            patches, inside = self._patches(normal, places[at.start : at.stop])
            for of_slice, in_brain in zip(patches, inside, strict=True):
                brain = of_slice[in_brain]
                chosen.append(brain[torch.randperm(len(brain), generator=rng)[:share]])
        return torch.cat(chosen)

    def _patches(self, slices: SliceSet, at: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Patches (n, P, d), averaged with their neighbours, of two taps; and which lie in the brain (n, P)."""
        features = slices.features(at)[:, list(TAPS)].flatten(0, 1).movedim(-1, 1)
        around = F.avg_pool2d(features, 3, stride=1, padding=1, count_include_pad=False)
        rows, columns = around.shape[-2:]
        patches = around.unflatten(0, (len(at), len(TAPS))).flatten(1, 2).flatten(2).transpose(1, 2)
        cover = F.interpolate(slices.brain(at, MAP_SIZE).unsqueeze(1).float(), size=(rows, columns), mode="area")
        return patches.contiguous(), cover.flatten(1) >= 0.5

    def _distances(self, slices: SliceSet, at: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Distances (n, P) of patches to the nearest remembered one, which lie in the brain (n, P), and the patches."""
        patches, inside = self._patches(slices, at)
        nearest = [self._nearest(one.to(self.device)).cpu() for one in patches]
        return torch.stack(nearest), inside, patches

    def _nearest(self, patches: Tensor) -> Tensor:
        """Distances (P,) of the patches (P, d) of a slice."""
        return torch.cdist(patches, self.memory).min(1).values

    def _maps(self, distances: Tensor, inside: Tensor) -> Tensor:
        """Distances of patches (n, P) to smooth maps of errors (n, MAP_SIZE, MAP_SIZE)."""
        side = round(distances.shape[1] ** 0.5)
        grid = (distances * inside).unflatten(1, (side, side)).unsqueeze(1)
        return smoothed(F.interpolate(grid, size=(MAP_SIZE, MAP_SIZE), mode="bilinear", align_corners=False)[:, 0])

    def _scores(self, distances: Tensor, inside: Tensor, patches: Tensor) -> np.ndarray:
        """The largest distance in the brain, less where its nearest patch is as rare (the paper's equation 7)."""
        largest = (distances * inside).max(1)
        scores = []
        for row, (distance, patch) in enumerate(zip(largest.values.tolist(), largest.indices.tolist(), strict=True)):
            scores.append(self._weighed(patches[row, patch].to(self.device), distance))
        return np.array(scores, np.float64)

    def _weighed(self, patch: Tensor, distance: float) -> float:
        nearest = self.memory[torch.cdist(patch[None], self.memory)[0].argmin()]
        count = min(NEIGHBOURS, len(self.memory))
        neighbours = torch.cdist(nearest[None], self.memory)[0].topk(count, largest=False).indices
        if len(neighbours) == 1:
            return distance
        gaps = torch.cdist(patch[None], self.memory[neighbours])[0].double()
        return float(distance * (1 - gaps.softmax(0)[0]))


def greedy_coreset(patches: Tensor, count: int, seed: int) -> Tensor:
    """`count` of the patches (N, d) that leave none far away: k-centre, greedily.

    Distances are measured after a random projection to 128 numbers.
    """
    if len(patches) <= count:
        return patches
    rng = torch.Generator().manual_seed(seed)
    width = patches.shape[1]
    projection = torch.randn(width, min(PROJECTION, width), generator=rng) / PROJECTION**0.5
    small = patches @ projection
    squares = (small**2).sum(1)
    chosen = [int(torch.randint(len(small), (1,), generator=rng))]
    nearest = torch.full((len(small),), torch.inf)
    for _ in range(count - 1):
        last = chosen[-1]
        nearest = torch.minimum(nearest, squares + squares[last] - 2 * (small @ small[last]))
        chosen.append(int(nearest.argmax()))
    return patches[chosen]

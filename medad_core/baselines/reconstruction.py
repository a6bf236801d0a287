"""What the three reconstruction baselines share: training on tumour-free pictures, and errors to scores and maps.

One decision: they differ in a network, a loss and an error, and in nothing else; size, epochs, batch, learning rate and slices are one
budget for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from medad_core.baselines.detector import LIMIT_SLICES, SCORE_BATCH, Progress, Scored, SliceSet, batches, mean_within, normal_limit, require, smoothed, spread, squashed
from medad_core.config import BaselineTraining
from medad_core.errors import MedadError


class Reconstruction(ABC):
    """A detector by reconstruction error. `network` is made with the seed; the same seed and slices give the same scores on one machine."""

    def __init__(self, settings: BaselineTraining, seed: int, device: str) -> None:
        self.settings, self.seed, self.device, self.size = settings, seed, device, settings.image_size
        torch.manual_seed(seed)
        self.network = self.build().to(device)
        self.limit = 1.0

    @abstractmethod
    def build(self) -> nn.Module:
        """The network to train."""

    @abstractmethod
    def loss(self, pictures: Tensor, rng: torch.Generator) -> Tensor:
        """Training loss of pictures (n, 1, S, S)."""

    @abstractmethod
    def errors(self, pictures: Tensor) -> tuple[Tensor, np.ndarray | None]:
        """Error maps (n, S, S) >= 0, and scores (n,) where they are not the mean error within the brain."""

    def prepare(self, normal: SliceSet) -> None:  # noqa: B027 (most take nothing)
        """What is taken from the tumour-free slices before training."""

    def fit(self, normal: SliceSet, progress: Progress = lambda *_: None) -> None:
        """See `Detector`."""
        require(normal)
        self.prepare(normal)
        self._train(normal, progress)
        self.network.eval()
        places = spread(len(normal), LIMIT_SLICES)
        self.limit = normal_limit(self._inside(normal, places[at.start : at.stop]) for at in batches(len(places), SCORE_BATCH))

    def _train(self, normal: SliceSet, progress: Progress) -> None:
        epochs, size = self.settings.epochs, self.settings.batch_size
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.settings.learning_rate)
        rng = torch.Generator().manual_seed(self.seed)
        self.network.train()
        for epoch in range(epochs):
            order = torch.randperm(len(normal), generator=rng).tolist()
            for at in batches(len(normal), size):
                loss = self.loss(normal.pictures(order[at.start : at.stop], self.size).to(self.device), rng)
                if not torch.isfinite(loss):
                    raise MedadError(f"the loss is no longer a number in epoch {epoch + 1}; lower reproduce.baselines.learning_rate")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            progress(epoch + 1, epochs)

    @torch.no_grad()
    def score(self, slices: SliceSet) -> Iterator[Scored]:
        """See `Detector`."""
        for at in batches(len(slices), SCORE_BATCH):
            brain = slices.brain(at, self.size)
            errors, scores = self.errors(slices.pictures(at, self.size).to(self.device))
            scores = mean_within(errors.cpu(), brain) if scores is None else scores
            yield Scored(scores, squashed(smoothed(errors.cpu()), self.limit) * brain)

    @torch.no_grad()
    def _inside(self, slices: SliceSet, at: list[int]) -> Tensor:
        return smoothed(self.errors(slices.pictures(at, self.size).to(self.device))[0].cpu())[slices.brain(at, self.size)]

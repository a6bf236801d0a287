"""What the three reconstruction baselines share: training on tumour-free pictures, and errors to scores and maps.

One decision: they differ in a network, a loss and an error, and in nothing else; size, epochs, batch, learning rate and
slices are one budget for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medad_core.baselines.detector import (
    LIMIT_SLICES,
    SCORE_BATCH,
    Scored,
    SliceSet,
    batches,
    mean_within,
    normal_limit,
    require,
    smoothed,
    spread,
    squashed,
)
from medad_core.config import BaselineTraining
from medad_core.errors import MedadError
from medad_core.progress import ReportProgress


class Reconstruction(ABC):
    """A detector by reconstruction error.

    `network` is made with the seed; the same seed and slices give the same scores on one machine.
    """

    def __init__(self, settings: BaselineTraining, seed: int, device: str) -> None:
        self.settings = settings
        self.seed = seed
        self.device = device
        self.size = settings.image_size
        torch.manual_seed(seed)
        self.network = self.build().to(device)
        self.limit = 1.0
        self.training_error: float | None = None

    @abstractmethod
    def build(self) -> nn.Module:
        """The network to train."""

    @abstractmethod
    def loss(self, pictures: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor | float]:
        """Training loss of pictures (n, 1, S, S) in two parts: `distance` to the rebuilt pictures, and a penalty.

        `rng` is that of the training.
        """

    def distance(self, pictures: Tensor, made: Tensor) -> Tensor:
        """How far pictures (n, 1, S, S) are from rebuilt ones, a scalar."""
        return F.mse_loss(made, pictures)

    @abstractmethod
    def errors(self, pictures: Tensor) -> tuple[Tensor, np.ndarray | None]:
        """Error maps (n, S, S) >= 0, and scores (n,) where they are not the mean error within the brain."""

    def prepare(self, normal: SliceSet) -> None:  # noqa: B027 (most need nothing)
        """Take what is needed from the tumour-free slices before training."""

    def fit(self, normal: SliceSet, progress: ReportProgress = lambda *_: None) -> None:
        """See `Detector`."""
        require(normal)
        self.prepare(normal)
        self.training_error = self._train(normal, progress) / self._of_the_mean_picture(normal)
        self.network.eval()
        chosen = spread(len(normal), LIMIT_SLICES)
        runs = (chosen[at.start : at.stop] for at in batches(len(chosen), SCORE_BATCH))
        self.limit = normal_limit(self._brain_errors(normal, run) for run in runs)

    def _train(self, normal: SliceSet, progress: ReportProgress) -> float:
        """The mean distance of the last epoch."""
        epochs = self.settings.epochs
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.settings.learning_rate)
        rng = torch.Generator().manual_seed(self.seed)
        self.network.train()
        for epoch in range(epochs):
            order = torch.randperm(len(normal), generator=rng).tolist()
            total = 0.0
            for at in batches(len(normal), self.settings.batch_size):
                pictures = normal.pictures(order[at.start : at.stop], self.size).to(self.device)
                distance, penalty = self.loss(pictures, rng)
                loss = distance + penalty
                if not torch.isfinite(loss):
                    raise MedadError(
                        f"the loss is no longer a number in epoch {epoch + 1}; lower reproduce.baselines.learning_rate"
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += distance.item() * len(at)
            progress(epoch + 1, epochs)
        return total / len(normal)

    @torch.no_grad()
    def _of_the_mean_picture(self, normal: SliceSet) -> float:
        """The mean distance of pictures to their mean; above 0."""
        pictures = normal.pictures(spread(len(normal), LIMIT_SLICES), self.size)
        mean = pictures.mean(0, keepdim=True).to(self.device)
        runs = [pictures[at.start : at.stop].to(self.device) for at in batches(len(pictures), SCORE_BATCH)]
        total = sum(float(self.distance(run, mean.expand_as(run))) * len(run) for run in runs)
        return max(total / len(pictures), 1e-12)

    @torch.no_grad()
    def score(self, slices: SliceSet) -> Iterator[Scored]:
        """See `Detector`."""
        for at in batches(len(slices), SCORE_BATCH):
            brain = slices.brain(at, self.size)
            errors, scores = self.errors(slices.pictures(at, self.size).to(self.device))
            scores = mean_within(errors.cpu(), brain) if scores is None else scores
            yield Scored(scores, squashed(smoothed(errors.cpu()), self.limit) * brain)

    @torch.no_grad()
    def _brain_errors(self, slices: SliceSet, at: Sequence[int]) -> Tensor:
        """Smoothed errors (n,) of the brain's pixels."""
        errors, _ = self.errors(slices.pictures(at, self.size).to(self.device))
        return smoothed(errors.cpu())[slices.brain(at, self.size)]


def normalisation(channels: int, batch_size: int) -> nn.Module:
    """Batch normalisation, as in the papers; group normalisation where a batch is one picture.

    The running statistics of one picture fit no other.
    """
    return nn.BatchNorm2d(channels) if batch_size > 1 else nn.GroupNorm(max(1, channels // 8), channels)

"""Memory-augmented autoencoder (Gong et al. 2019): a slice is rebuilt from a few remembered pieces of normal slices.

One decision: the memory is addressed at every position of the bottleneck, as the authors do for pictures: softmax over
cosine similarity, hard shrinkage in its differentiable form, L1 renormalisation, and loss MSE + 0.0002 · entropy. The
shrinkage λ is 0.0025 at 500 slots, and as far above the mean address 1/N at any other N (the paper's range is 1/N to
3/N). At 2,000 slots and 0.0025, every address of a cosine's softmax would be cut, and nothing would ever be learned.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medad_core.baselines.reconstruction import Reconstruction, normalisation

SHRINK = 1.25  # of the mean address 1/N
ENTROPY = 2e-4
WIDTH = 128


class Memory(nn.Module):
    """`slots` remembered vectors of `WIDTH`."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.empty(slots, WIDTH))
        nn.init.kaiming_uniform_(self.slots, a=5**0.5)
        self.shrink = SHRINK / slots

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (n, WIDTH, h, w) to remembered codes of the same shape, and the addresses (n, h, w, slots).

        Every address sums to 1.
        """
        queries = F.normalize(codes.movedim(1, -1), dim=-1)
        address = (queries @ F.normalize(self.slots, dim=-1).T).softmax(-1)
        kept = F.relu(address - self.shrink) * address / ((address - self.shrink).abs() + 1e-12)
        kept = F.normalize(kept, p=1, dim=-1, eps=1e-12)
        return (kept @ self.slots).movedim(-1, 1), kept


class _Network(nn.Module):
    def __init__(self, slots: int, batch_size: int) -> None:
        super().__init__()

        def step(before: int, after: int, convolution: type[nn.Module]) -> tuple[nn.Module, ...]:
            """Half or twice the size."""
            return (
                convolution(before, after, 4, stride=2, padding=1),
                normalisation(after, batch_size),
                nn.LeakyReLU(0.2),
            )

        self.encode = nn.Sequential(*step(1, 32, nn.Conv2d), *step(32, 64, nn.Conv2d), *step(64, WIDTH, nn.Conv2d))
        self.memory = Memory(slots)
        self.decode = nn.Sequential(
            *step(WIDTH, 64, nn.ConvTranspose2d),
            *step(64, 32, nn.ConvTranspose2d),
            nn.ConvTranspose2d(32, 1, 4, stride=2, padding=1),
        )

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (n, 1, S, S) to rebuilt ones, and the addresses in the memory."""
        remembered, address = self.memory(self.encode(pictures))
        return self.decode(remembered), address


class MemoryAutoencoder(Reconstruction):
    """See `Detector`."""

    def build(self) -> nn.Module:
        """See `Reconstruction.build`."""
        return _Network(self.settings.memory_slots, self.settings.batch_size)

    def loss(self, pictures: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor | float]:
        """See `Reconstruction.loss`."""
        made, address = self.network(pictures)
        entropy = -(address * (address + 1e-12).log()).sum(-1).mean()
        return self.distance(pictures, made), ENTROPY * entropy

    def errors(self, pictures: Tensor) -> tuple[Tensor, np.ndarray | None]:
        """See `Reconstruction.errors`."""
        return ((self.network(pictures)[0] - pictures) ** 2)[:, 0], None

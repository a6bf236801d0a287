"""Memory-augmented autoencoder (Gong et al. 2019): a slice is rebuilt from a few remembered pieces of normal slices.

One decision: the memory is addressed at every position of the bottleneck, as the authors do for pictures; softmax over cosine
similarity, hard shrinkage with λ = 0.0025 in its differentiable form, L1 renormalisation, and loss MSE + 0.0002 · entropy.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medad_core.baselines.reconstruction import Reconstruction

SHRINK = 0.0025
ENTROPY = 2e-4
WIDTH = 128


class Memory(nn.Module):
    """`slots` remembered vectors of `WIDTH`."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.empty(slots, WIDTH))
        nn.init.kaiming_uniform_(self.slots, a=5**0.5)

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (n, WIDTH, h, w) to what the memory has for them, and the addresses (n, h, w, slots), each summing to 1."""
        asked = F.normalize(codes.movedim(1, -1), dim=-1)
        address = (asked @ F.normalize(self.slots, dim=-1).T).softmax(-1)
        kept = F.relu(address - SHRINK) * address / ((address - SHRINK).abs() + 1e-12)
        kept = F.normalize(kept, p=1, dim=-1, eps=1e-12)
        return (kept @ self.slots).movedim(-1, 1), kept


class _Network(nn.Module):
    def __init__(self, slots: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(*_step(1, 32, down=True), *_step(32, 64, down=True), *_step(64, WIDTH, down=True))
        self.memory = Memory(slots)
        self.decode = nn.Sequential(*_step(WIDTH, 64, down=False), *_step(64, 32, down=False), nn.ConvTranspose2d(32, 1, 4, stride=2, padding=1))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        remembered, address = self.memory(self.encode(pictures))
        return self.decode(remembered), address


def _step(before: int, after: int, down: bool) -> tuple[nn.Module, ...]:
    """Half or twice the size."""
    convolution = nn.Conv2d if down else nn.ConvTranspose2d
    return convolution(before, after, 4, stride=2, padding=1), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)


class MemoryAutoencoder(Reconstruction):
    """See `Detector`."""

    def build(self) -> nn.Module:
        return _Network(self.settings.memory_slots)

    def loss(self, pictures: Tensor, rng: torch.Generator) -> Tensor:
        made, address = self.network(pictures)
        entropy = -(address * (address + 1e-12).log()).sum(-1).mean()
        return F.mse_loss(made, pictures) + ENTROPY * entropy

    def errors(self, pictures: Tensor) -> tuple[Tensor, np.ndarray | None]:
        return ((self.network(pictures)[0] - pictures) ** 2)[:, 0], None

"""Residual autoencoder with perceptual loss.

One decision: the paper compares features of a VGG19 trained on ImageNet. No such weights come with a package, so the
features are those of the study's own frozen image encoder after its first tap. Everything else follows the paper:
features are normalised by their mean and deviation over training slices, and loss and score are the relative perceptual
L1, mean|f(x) - f(x̂)| / mean|f(x)|. Source: Shvetsova et al. 2021, "Anomaly Detection in Medical Imaging With Deep
Perceptual Autoencoders".
"""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medad_core.baselines.detector import SliceSet, batches, spread
from medad_core.baselines.reconstruction import Reconstruction, normalisation
from medad_core.config import BaselineTraining
from medad_core.models.encoder import VisionTransformerEncoder

LATENT = 32  # channels of the 4 × 4 (at 64 px) bottleneck
STATISTICS_SLICES = 256


class _Residual(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, batch_size: int) -> None:
        super().__init__()
        first = nn.Conv2d(before, after, 3, padding=1)
        second = nn.Conv2d(after, after, 3, padding=1)
        self.body = nn.Sequential(
            first, normalisation(after, batch_size), nn.LeakyReLU(0.2), second, normalisation(after, batch_size)
        )
        self.shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, before, h, w) to (n, after, h, w)."""
        return F.leaky_relu(self.body(x) + self.shortcut(x), 0.2)


def residual_autoencoder(width: int, batch_size: int, depth: int = 4) -> nn.Sequential:
    """A network from pictures (n, 1, S, S) to (n, 1, S, S) in [0, 1] through `LATENT` channels at S / 2**depth.

    Its first layer has `width` channels; every halving doubles them, up to 128.
    """
    channels = [min(width * 2**step, 128) for step in range(depth + 1)]
    down: list[nn.Module] = []
    for before, after in pairwise(channels):
        down += [_Residual(before, after, batch_size), nn.AvgPool2d(2)]
    up: list[nn.Module] = []
    for before, after in pairwise(reversed(channels)):
        up += [nn.Upsample(scale_factor=2), _Residual(before, after, batch_size)]
    narrow = (nn.Conv2d(channels[-1], LATENT, 1), nn.Conv2d(LATENT, channels[-1], 1))
    return nn.Sequential(
        nn.Conv2d(1, channels[0], 3, padding=1),
        *down,
        *narrow,
        *up,
        nn.Conv2d(channels[0], 1, 3, padding=1),
        nn.Sigmoid(),
    )


class Features(nn.Module):
    """The frozen encoder up to its first tap, with gradients to its input."""

    def __init__(self, encoder: VisionTransformerEncoder, size: int) -> None:
        super().__init__()
        self.family = encoder.family
        self.model = copy.deepcopy(encoder.model)
        blocks = self.family.blocks(self.model)
        del blocks[encoder.tapped[0] :]
        for block in blocks:
            block._forward_hooks.clear()  # the encoder's own taps would keep every graph alive
        blocks[-1].register_forward_hook(self._keep)
        self.register_buffer("mean", encoder.mean.clone(), persistent=False)
        self.register_buffer("std", encoder.std.clone(), persistent=False)
        self.size = size

    def _keep(self, _module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> None:
        self.tapped = output[0] if isinstance(output, tuple) else output

    def forward(self, pictures: Tensor) -> Tensor:
        """(n, 1, S, S) in [0, 1] to features (n, width, g, g)."""
        large = F.interpolate(pictures, size=(self.size, self.size), mode="bilinear", align_corners=False)
        self.model(pixel_values=(large - self.mean) / self.std, **dict(self.family.call))  # fills `tapped`
        tokens = self.tapped[:, self.family.class_tokens :].transpose(1, 2)
        side = round(tokens.shape[2] ** 0.5)
        return tokens.unflatten(2, (side, side))


class PerceptualAutoencoder(Reconstruction):
    """See `Detector`."""

    def __init__(self, settings: BaselineTraining, encoder: VisionTransformerEncoder, seed: int, device: str) -> None:
        super().__init__(settings, seed, device)
        patch = encoder.image_size // encoder.grid
        # Small pictures gain nothing from 224: half of it quarters the work.
        patches = encoder.grid if self.size > 112 else encoder.grid // 2
        self.features = Features(encoder, patch * patches).to(device).eval().requires_grad_(False)
        self.centre = torch.zeros(1, device=device)
        self.deviation = torch.ones(1, device=device)

    def build(self) -> nn.Module:
        """See `Reconstruction.build`."""
        return residual_autoencoder(16 if self.size > 112 else 8, self.settings.batch_size)

    @torch.no_grad()
    def prepare(self, normal: SliceSet) -> None:
        """Mean and deviation of every channel of the features."""
        chosen = spread(len(normal), STATISTICS_SLICES)
        runs = (normal.pictures(chosen[at.start : at.stop], self.size) for at in batches(len(chosen), 32))
        features = torch.cat([self.features(run.to(self.device)) for run in runs])
        self.centre = features.mean((0, 2, 3), keepdim=True)
        self.deviation = features.std((0, 2, 3), keepdim=True).clamp(min=1e-6)

    def loss(self, pictures: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor | float]:
        """See `Reconstruction.loss`."""
        return self.distance(pictures, self.network(pictures)), 0.0

    def distance(self, pictures: Tensor, made: Tensor) -> Tensor:
        """See `Reconstruction.distance`: the mean relative perceptual L1."""
        gap, size = self._gap(pictures, made)
        return (gap.mean((1, 2, 3)) / size).mean()

    def errors(self, pictures: Tensor) -> tuple[Tensor, np.ndarray]:
        """See `Reconstruction.errors`."""
        gap, size = self._gap(pictures, self.network(pictures))
        share = gap.mean(1, keepdim=True) / size.view(-1, 1, 1, 1)
        scores = share.mean((1, 2, 3)).double().cpu().numpy()
        return F.interpolate(share, size=(self.size, self.size), mode="bilinear", align_corners=False)[:, 0], scores

    def _gap(self, pictures: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
        """|f(x) - f(x̂)| (n, width, g, g), and mean|f(x)| (n,)."""
        true = self._normalised(pictures).detach()
        return (true - self._normalised(made)).abs(), true.abs().mean((1, 2, 3))

    def _normalised(self, pictures: Tensor) -> Tensor:
        return (self.features(pictures) - self.centre) / self.deviation

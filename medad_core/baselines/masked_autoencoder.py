"""Masked autoencoder (He et al. 2022) as a detector: what cannot be filled in from its surroundings is anomalous.

One decision: a slice is shown four times, each time another quarter of its patches; the quarters partition it. So every
patch is filled in from three views and compared with what is really there. The visible patches of a view are taken as
they are.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from medad_core.baselines.reconstruction import Reconstruction

VIEWS = 4  # with 75 % masked, each view shows one quarter


class MaskedAutoencoder(Reconstruction):
    """See `Detector`."""

    def build(self) -> nn.Module:
        """See `Reconstruction.build`."""
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        patch = 16 if self.size > 112 else 8
        config = ViTMAEConfig(
            image_size=self.size,
            patch_size=patch,
            num_channels=1,
            hidden_size=192,
            num_hidden_layers=6,
            num_attention_heads=6,
            intermediate_size=768,
            decoder_hidden_size=96,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=3,
            decoder_intermediate_size=384,
            mask_ratio=0.75,
            norm_pix_loss=False,
        )
        self.patches = (self.size // patch) ** 2
        network = ViTMAEForPreTraining(config)
        # Transformers 5.19 leaves positions at zero in a new model; no patch would know its place.
        for positions in (network.vit.embeddings.position_embeddings, network.decoder.decoder_pos_embed):
            positions.data[0, 1:] = sinusoids(self.size // patch, positions.shape[-1])
        nn.init.normal_(network.decoder.mask_token, std=config.initializer_range)
        return network

    def loss(self, pictures: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor | float]:
        """See `Reconstruction.loss`."""
        noise = torch.rand(len(pictures), self.patches, generator=rng)
        return self.network(pixel_values=pictures, noise=noise.to(pictures.device)).loss, 0.0

    def errors(self, pictures: Tensor) -> tuple[Tensor, np.ndarray | None]:
        """See `Reconstruction.errors`."""
        order = torch.randperm(self.patches, generator=torch.Generator().manual_seed(self.seed))
        total = torch.zeros_like(pictures)
        views = torch.zeros_like(pictures)
        for view in range(VIEWS):
            # The network shows the patches of lowest noise: rotating the order shows each quarter once.
            noise = torch.empty(self.patches)
            noise[order.roll(view * self.patches // VIEWS)] = torch.arange(self.patches, dtype=torch.float32)
            out = self.network(pixel_values=pictures, noise=noise.expand(len(pictures), -1).to(pictures.device))
            made = self.network.unpatchify(out.logits)
            hidden = self.network.unpatchify(out.mask.unsqueeze(-1).expand(-1, -1, out.logits.shape[-1]))
            total = total + hidden * (made - pictures) ** 2
            views = views + hidden
        return (total / views.clamp(min=1))[:, 0], None


def sinusoids(side: int, width: int) -> Tensor:
    """Fixed positions (side², width) of a square of patches, row by row (He et al. 2022).

    They are sines and cosines of the row, then of the column.
    """
    frequencies = 1e4 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side).unsqueeze(1) * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([waves.repeat_interleave(side, dim=0), waves.repeat(side, 1)], dim=1)

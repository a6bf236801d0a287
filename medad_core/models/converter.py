"""The embedding converter: anomaly maps and medical knowledge become tokens in the LLM's embedding space.

One decision: the map is rendered at 48×48, so four halvings end in 3×3: nine tokens, one a cell of the grid that the answers
speak of. Source: METHOD section 4; AnomalyGPT's `PromptLearner` with knowledge tokens in place of its base tokens.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from medad_core.models.decoder import upsample

MAP_SIZE = 48
MAP_TOKENS = 9
CHANNELS = (1, 32, 64, 128, 192)


class _Scaled(nn.Module):
    """LayerNorm, then one learned factor: soft tokens must be as long as the LLM's own embeddings to be heard (METHOD section 4)."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens) * self.scale


class Converter(nn.Module):
    """Map tokens from grids, knowledge tokens from sentence embeddings.

    `knowledge` (K, text_width) holds the encoded sentences and is stored with the weights; `embedding_std` is the standard
    deviation of the LLM's embedding table (0.136 for SmolLM2-135M).
    """

    def __init__(self, knowledge: Tensor, width: int, embedding_std: float) -> None:
        super().__init__()
        stages = [layer for a, b in pairwise(CHANNELS) for layer in (nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GELU())]
        self.convolutions = nn.Sequential(*stages)
        self.mix = nn.Conv2d(CHANNELS[-1], CHANNELS[-1], 3, padding=1)  # lets each cell see all nine: the centroid is a global fact
        self.to_width = nn.Conv2d(CHANNELS[-1], width, 1)
        self.scale = _Scaled(width, embedding_std)
        self.positions = nn.Parameter(torch.randn(MAP_TOKENS, width) * 0.1 * embedding_std)
        self.register_buffer("knowledge", knowledge.clone())
        self.project = nn.Linear(knowledge.shape[1], width)
        self.knowledge_scale = _Scaled(width, embedding_std)

    def forward(self, grid: Tensor) -> Tensor:
        """Logit-difference grids (B, taps, gh, gw) to map tokens (B, 9, width)."""
        return self.scale(self.to_width(self.cells(grid)).flatten(2).transpose(1, 2)) + self.positions

    def cells(self, grid: Tensor) -> Tensor:
        """What the convolutions see in each of the nine cells (B, 192, 3, 3)."""
        maps = upsample(grid.float(), (MAP_SIZE, MAP_SIZE)).sigmoid().mean(dim=1, keepdim=True)
        cells = self.convolutions(maps)
        return cells + nn.functional.gelu(self.mix(cells))

    def knowledge_tokens(self) -> Tensor:
        """The K sentences in the LLM's embedding space (K, width)."""
        return self.knowledge_scale(self.project(self.knowledge))

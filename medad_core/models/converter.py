"""The embedding converter: anomaly maps and medical knowledge become tokens in the LLM's embedding space.

One decision: an architecture is a module with four things in common, which is all that training and stages know of it: soft
tokens of a slice (`forward`), tokens that every prompt shares (`knowledge_tokens`), what its convolutions see (`cells`), and
how it is built from its own tensors (`of_state`). `compact` is ours, `anomalygpt` is that of AnomalyGPT (Gu et al. 2023), so
that its checkpoints can be used. Source: METHOD section 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    """`compact`: map tokens from grids, knowledge tokens from sentence embeddings.

    The map is rendered at 48×48, so four halvings end in 3×3: nine tokens, one a cell of the grid that the answers speak of.
    `knowledge` (K, text_width) holds the encoded sentences and is stored with the weights; `embedding_std` is the standard
    deviation of the LLM's embedding table (0.136 for SmolLM2-135M).
    """

    architecture = "compact"
    joint = None  # it takes no embedding of the image

    def __init__(self, knowledge: Tensor, width: int, embedding_std: float) -> None:
        super().__init__()
        stages = [
            layer for a, b in pairwise(CHANNELS) for layer in (nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GELU())
        ]
        self.convolutions = nn.Sequential(*stages)
        self.mix = nn.Conv2d(
            CHANNELS[-1], CHANNELS[-1], 3, padding=1
        )  # lets each cell see all nine: the centroid is a global fact
        self.to_width = nn.Conv2d(CHANNELS[-1], width, 1)
        self.scale = _Scaled(width, embedding_std)
        self.positions = nn.Parameter(torch.randn(MAP_TOKENS, width) * 0.1 * embedding_std)
        self.register_buffer("knowledge", knowledge.clone())
        self.project = nn.Linear(knowledge.shape[1], width)
        self.knowledge_scale = _Scaled(width, embedding_std)

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> Converter:
        """A converter that the tensors of another fit into."""
        return cls(state["knowledge"], state["positions"].shape[1], 1.0)

    def forward(self, grid: Tensor, embedding: None = None) -> Tensor:
        """Logit-difference grids (B, taps, gh, gw) to map tokens (B, 9, width)."""
        return self.scale(self.to_width(self.cells(grid)).flatten(2).transpose(1, 2)) + self.positions

    def cells(self, grid: Tensor) -> Tensor:
        """What the convolutions see in each of the nine cells (B, 192, 3, 3)."""
        maps = upsample(grid.float(), (MAP_SIZE, MAP_SIZE)).sigmoid().mean(dim=1, keepdim=True)
        cells = self.convolutions(maps)
        return cells + nn.functional.gelu(self.mix(cells))

    def trunk(self) -> Iterator[nn.Parameter]:
        """The parameters behind `cells`."""
        return (parameter for module in (self.convolutions, self.mix) for parameter in module.parameters())

    def knowledge_tokens(self) -> Tensor:
        """The K sentences in the LLM's embedding space (K, width)."""
        return self.knowledge_scale(self.project(self.knowledge))


ANOMALYGPT_MAP_SIZE = 224
ANOMALYGPT_CHANNELS = (1, 4, 16, 64, 256, 1024)


class AnomalyGPTConverter(nn.Module):
    """`anomalygpt`: nine learned base tokens shared by all prompts, nine map tokens, and one of the image's joint-space embedding.

    The mean over taps of the abnormal probability at 224×224 is halved five times (3×3 convolution, ReLU, maximum of 2×2) to
    1,024 channels of 7×7, and a 5×5 convolution gives 3×3 tokens. Source: AnomalyGPT, section 3.3, and the layout of its
    checkpoints. `joint` is the width of the image's embedding, None where it is not asked for (as when trained by medad).
    """

    architecture = "anomalygpt"

    def __init__(self, width: int, joint: int | None = None, embedding_std: float = 1.0) -> None:
        super().__init__()
        self.joint = joint
        halving = [
            layer
            for a, b in pairwise(ANOMALYGPT_CHANNELS)
            for layer in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        ]
        self.convolutions = nn.Sequential(*halving)
        self.to_width = nn.Conv2d(ANOMALYGPT_CHANNELS[-1], width, 5)
        self.base = nn.Parameter(torch.randn(MAP_TOKENS, width) * embedding_std)
        self.image = nn.Linear(joint, width) if joint else None

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> AnomalyGPTConverter:
        """A converter that the tensors of another fit into."""
        return cls(state["base"].shape[1], state["image.weight"].shape[1] if "image.weight" in state else None)

    def forward(self, grid: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Grids (B, taps, gh, gw), and embeddings (B, joint) where asked for, to the image's token, if any, and map tokens (B, 9 or 10, width)."""
        tokens = self.to_width(self.cells(grid)).flatten(2).transpose(1, 2)
        return tokens if self.image is None else torch.cat([self.image(embedding.float()).unsqueeze(1), tokens], dim=1)

    def cells(self, grid: Tensor) -> Tensor:
        """What the convolutions make of the map (B, 1024, 7, 7)."""
        return self.convolutions(
            upsample(grid.float(), (ANOMALYGPT_MAP_SIZE, ANOMALYGPT_MAP_SIZE)).sigmoid().mean(dim=1, keepdim=True)
        )

    def trunk(self) -> Iterator[nn.Parameter]:
        """The parameters behind `cells`."""
        return self.convolutions.parameters()

    def knowledge_tokens(self) -> Tensor:
        """The base tokens (9, width): what stands where `compact` has its knowledge."""
        return self.base


ARCHITECTURES = {kind.architecture: kind for kind in (Converter, AnomalyGPTConverter)}


def new_converter(
    architecture: str, knowledge: Tensor, width: int, embedding_std: float
) -> Converter | AnomalyGPTConverter:
    """A converter to train. `anomalygpt` learns its base tokens and has no use for `knowledge`."""
    return (
        Converter(knowledge, width, embedding_std)
        if architecture == "compact"
        else AnomalyGPTConverter(width, None, embedding_std)
    )

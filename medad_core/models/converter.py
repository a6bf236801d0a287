"""The embedding converter: anomaly maps and medical knowledge become tokens in the LLM's embedding space.

One decision: an architecture is a module with four things in common, and training and stages know no more of it. They
are the soft tokens of a slice (`forward`), the tokens that every prompt shares (`knowledge_tokens`), the features of
its convolutions (`cells`), and how it is built from its own tensors (`of_state`). `compact` is ours; `anomalygpt` is
that of AnomalyGPT (Gu et al. 2023), so that its checkpoints can be used. Source: medad_core/README.md, "The converter".
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
    """LayerNorm, then one learned factor.

    Soft tokens that are shorter than the LLM's own embeddings have no effect on it.
    Source: medad_core/README.md, "The converter".
    """

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (…, width) to scaled ones of the same shape."""
        return self.norm(tokens) * self.scale


class Converter(nn.Module):
    """`compact`: map tokens from grids, knowledge tokens from sentence embeddings.

    The map is rendered at 48×48, so four halvings end in 3×3: nine tokens, one for each cell of the answers' grid.
    `knowledge` (K, text_width) holds the encoded sentences and is stored with the weights; `embedding_std` is the
    standard deviation of the LLM's embedding table (0.136 for SmolLM2-135M).
    """

    architecture = "compact"
    joint = None  # it takes no embedding of the image

    def __init__(self, knowledge: Tensor, width: int, embedding_std: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise(CHANNELS):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GELU()]
        self.convolutions = nn.Sequential(*layers)
        # It lets each cell see all nine: the centroid is a global fact.
        self.mix = nn.Conv2d(CHANNELS[-1], CHANNELS[-1], 3, padding=1)
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
        tokens = self.to_width(self.cells(grid)).flatten(2).transpose(1, 2)
        return self.scale(tokens) + self.positions

    def cells(self, grid: Tensor) -> Tensor:
        """Grids (B, taps, gh, gw) to the convolutions' features of the nine cells (B, 192, 3, 3)."""
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
    """`anomalygpt`: nine base tokens that all prompts share, nine map tokens, and a token of the image's embedding.

    The mean over taps of the abnormal probability at 224×224 is halved five times (3×3 convolution, ReLU, maximum of
    2×2) to 1,024 channels of 7×7, and a 5×5 convolution gives 3×3 tokens. `joint` is the width of the image's embedding
    in the joint space, None where it is not used (as when trained by medad). Source: AnomalyGPT, section 3.3, and the
    layout of its checkpoints.
    """

    architecture = "anomalygpt"

    def __init__(self, width: int, joint: int | None = None, embedding_std: float = 1.0) -> None:
        super().__init__()
        self.joint = joint
        layers: list[nn.Module] = []
        for before, after in pairwise(ANOMALYGPT_CHANNELS):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.convolutions = nn.Sequential(*layers)
        self.to_width = nn.Conv2d(ANOMALYGPT_CHANNELS[-1], width, 5)
        self.base = nn.Parameter(torch.randn(MAP_TOKENS, width) * embedding_std)
        self.image = nn.Linear(joint, width) if joint else None

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> AnomalyGPTConverter:
        """A converter that the tensors of another fit into."""
        joint = state["image.weight"].shape[1] if "image.weight" in state else None
        return cls(state["base"].shape[1], joint)

    def forward(self, grid: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Grids (B, taps, gh, gw) to map tokens (B, 9, width).

        Where the converter takes the image's embedding (B, joint), its token comes first: (B, 10, width).
        """
        tokens = self.to_width(self.cells(grid)).flatten(2).transpose(1, 2)
        if self.image is None:
            return tokens
        return torch.cat([self.image(embedding.float()).unsqueeze(1), tokens], dim=1)

    def cells(self, grid: Tensor) -> Tensor:
        """Grids (B, taps, gh, gw) to the convolutions' features (B, 1024, 7, 7)."""
        size = (ANOMALYGPT_MAP_SIZE, ANOMALYGPT_MAP_SIZE)
        return self.convolutions(upsample(grid.float(), size).sigmoid().mean(dim=1, keepdim=True))

    def trunk(self) -> Iterator[nn.Parameter]:
        """The parameters behind `cells`."""
        return self.convolutions.parameters()

    def knowledge_tokens(self) -> Tensor:
        """The base tokens (9, width), in the place of the knowledge tokens of `compact`."""
        return self.base


ARCHITECTURES = {kind.architecture: kind for kind in (Converter, AnomalyGPTConverter)}


def new_converter(
    architecture: str, knowledge: Tensor, width: int, embedding_std: float
) -> Converter | AnomalyGPTConverter:
    """A converter to train; parameters as in `Converter`.

    `anomalygpt` learns its base tokens and ignores `knowledge`.
    """
    if architecture == Converter.architecture:
        return Converter(knowledge, width, embedding_std)
    return AnomalyGPTConverter(width, None, embedding_std)

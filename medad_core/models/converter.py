"""The embedding converter: anomaly maps and medical knowledge become tokens in the LLM's embedding space.

One decision: an architecture is a module with four things in common, and training and stages know no more of it. They
are the soft tokens of a slice (`forward`), the tokens that every prompt shares (`knowledge_tokens`), the features of
its convolutions (`features`), and how it is built from its own tensors (`of_state`). `compact` is ours; `anomalygpt` is
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
MOST_TOKENS = MAP_TOKENS + 1
INPUTS = 3  # the channels of `placed` behind the map itself
CHANNELS = (32, 64, 128, 192)
QUANTILES = (0.5, 0.9, 0.99, 0.997, 0.999, 1.0)
SUMMARY_SIZE = 96  # pixels a side at which the quantiles are taken: 0.999 is the ninth brightest
LARGEST_LOG_ODDS = 6.9068  # of 0.999


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

    The map is rendered at 48×48, so four halvings end in 3×3: nine tokens, one for each cell of the answers' grid. The
    convolutions see the map relative to its maximum, so they learn where; how much comes as a tenth token, of quantiles
    of the map. With both in the convolutions unseen patients were ranked worse (training/README.md). `knowledge`
    (K, text_width) holds the encoded sentences and is stored with the weights; `embedding_std` is the standard
    deviation of the LLM's embedding table (0.136 for SmolLM2-135M). `plain` has the map itself as only input, and no
    tenth token: what medad 0.1 trained.
    """

    architecture = "compact"
    joint = None  # it takes no embedding of the image

    def __init__(self, knowledge: Tensor, width: int, embedding_std: float, plain: bool = False) -> None:
        super().__init__()
        channels = (1 if plain else INPUTS, *CHANNELS)
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GELU()]
        self.plain = plain
        self.convolutions = nn.Sequential(*layers)
        # It lets each cell see all nine: the centroid is a global fact.
        self.mix = nn.Conv2d(CHANNELS[-1], CHANNELS[-1], 3, padding=1)
        self.to_width = nn.Conv2d(CHANNELS[-1], width, 1)
        self.scale = _Scaled(width, embedding_std)
        self.positions = nn.Parameter(torch.randn(MAP_TOKENS, width) * 0.1 * embedding_std)
        self.register_buffer("knowledge", knowledge.clone())
        self.project = nn.Linear(knowledge.shape[1], width)
        self.knowledge_scale = _Scaled(width, embedding_std)
        self.summary = None
        if not plain:
            self.summary = nn.Sequential(nn.Linear(2 * len(QUANTILES), 64), nn.GELU(), nn.Linear(64, width))
            self.summary_scale = _Scaled(width, embedding_std)

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> Converter:
        """A converter that the tensors of another fit into."""
        return cls(state["knowledge"], state["positions"].shape[1], 1.0, plain="summary.0.weight" not in state)

    @property
    def tokens(self) -> int:
        """How many tokens a slice has."""
        return MAP_TOKENS + (self.summary is not None)

    def forward(self, grid: Tensor, frames: Tensor | None = None, embedding: None = None) -> Tensor:
        """Logit-difference grids (B, taps, gh, gw) to map tokens (B, 9 or 10, width), that of the quantiles last.

        `frames` (B, 3) are where in the square around the picture a grid lies, as in `data.window.frames_of`; None for
        all of it.
        """
        tokens = self.to_width(self.cells(grid, frames)).flatten(2).transpose(1, 2)
        tokens = self.scale(tokens) + self.positions
        if self.summary is None:
            return tokens
        return torch.cat([tokens, self.summary_scale(self.summary(self.quantiles(grid))).unsqueeze(1)], dim=1)

    def cells(self, grid: Tensor, frames: Tensor | None = None) -> Tensor:
        """Grids (B, taps, gh, gw) to the convolutions' features of the nine cells (B, 192, 3, 3)."""
        maps = placed(grid, frames, MAP_SIZE)
        cells = self.convolutions(maps[:, :1] if self.plain else maps[:, 1:])
        return cells + nn.functional.gelu(self.mix(cells))

    def features(self, grid: Tensor, frames: Tensor | None = None) -> Tensor:
        """What the warm-up's linear head gets (B, F): the cells, and the quantiles where they have a token."""
        cells = self.cells(grid, frames).flatten(1)
        return cells if self.summary is None else torch.cat([cells, self.quantiles(grid)], dim=1)

    def quantiles(self, grid: Tensor) -> Tensor:
        """Quantiles of the map (B, 12): as they are in [0, 1], then as log-odds."""
        pixels = (
            upsample(grid.float(), (SUMMARY_SIZE, SUMMARY_SIZE)).sigmoid().mean(dim=1).flatten(1).sort(dim=1).values
        )
        at = torch.tensor([round(quantile * (pixels.shape[1] - 1)) for quantile in QUANTILES], device=grid.device)
        values = pixels[:, at]
        return torch.cat([values, log_odds(values)], dim=1)

    def trunk(self) -> Iterator[nn.Parameter]:
        """The parameters behind `cells`."""
        return (parameter for module in (self.convolutions, self.mix) for parameter in module.parameters())

    def knowledge_tokens(self) -> Tensor:
        """The K sentences in the LLM's embedding space (K, width)."""
        return self.knowledge_scale(self.project(self.knowledge))


def placed(grid: Tensor, frames: Tensor | None, size: int) -> Tensor:
    """Grids (B, taps, gh, gw) in the square around the picture, (B, 4, size, size).

    Channel 0 is the map, 0 beside its frame; channel 1 is relative to its maximum; channels 2 and 3 are row and column
    from the middle of the frame, from −1 to 1 within it: where frames are windows, the middle is that of the brain.
    """
    whole = frames is None
    if frames is None:
        frames = torch.tensor([[0.0, 0.0, 1.0]], device=grid.device).expand(len(grid), -1)
    share = torch.linspace(0, 1, size, device=grid.device)
    top, left, side = frames.float().to(grid.device).T.unsqueeze(-1)
    row = (2 * (share - top) / side - 1).unsqueeze(2).expand(-1, -1, size)
    column = (2 * (share - left) / side - 1).unsqueeze(1).expand(-1, size, -1)
    at = torch.stack([column, row], dim=-1)
    if whole:  # the same, and to the last bit what earlier versions gave
        logits = upsample(grid.float(), (size, size))
    else:
        logits = nn.functional.grid_sample(grid.float(), at, padding_mode="border", align_corners=True)
    inside = (at.abs() <= 1 + 1e-4).all(dim=-1)
    maps = logits.sigmoid().mean(dim=1) * inside
    relative = maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=1e-3)
    return torch.stack([maps, relative, row.clamp(-1, 1), column.clamp(-1, 1)], dim=1)


def log_odds(probability: Tensor) -> Tensor:
    """Log-odds of values in [0, 1], of the same shape, scaled to −1 to 1: at 0.001 and 0.999 they end."""
    return torch.logit(probability, 1e-3) / LARGEST_LOG_ODDS


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

    tokens = MAP_TOKENS

    def forward(self, grid: Tensor, frames: Tensor | None = None, embedding: Tensor | None = None) -> Tensor:
        """Grids (B, taps, gh, gw) to map tokens (B, 9, width); `frames` as in `Converter`.

        Where the converter takes the image's embedding (B, joint), its token comes first: (B, 10, width).
        """
        tokens = self.to_width(self.cells(grid, frames)).flatten(2).transpose(1, 2)
        if self.image is None:
            return tokens
        return torch.cat([self.image(embedding.float()).unsqueeze(1), tokens], dim=1)

    def cells(self, grid: Tensor, frames: Tensor | None = None) -> Tensor:
        """Grids (B, taps, gh, gw) to the convolutions' features (B, 1024, 7, 7)."""
        return self.convolutions(placed(grid, frames, ANOMALYGPT_MAP_SIZE)[:, :1])

    def features(self, grid: Tensor, frames: Tensor | None = None) -> Tensor:
        """What the warm-up's linear head gets (B, F)."""
        return self.cells(grid, frames).flatten(1)

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

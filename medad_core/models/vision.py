"""Families of vision transformers: how an architecture of `transformers` is loaded and where its blocks are.

One decision: a family is data, so one encoder class serves them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from medad_core.errors import WeightsError
from medad_core.models.loading import config_values, load_tower, read_config, read_normalisation
from medad_core.models.resolve import ModelFolder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig
    from transformers.modeling_outputs import BaseModelOutputWithPooling

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)

TOWER = "vision_config"  # the part of a configuration that is the vision tower's, where there are two


@dataclass(frozen=True)
class Family:
    """How one architecture is loaded and tapped; `mean` and `std` normalise its three channels.

    `call` are further arguments of its forward pass: CLIP refuses other sizes than its own unless its positions are
    interpolated; DINOv2 always interpolates them.
    """

    load: Callable[[Path], nn.Module]
    blocks: Callable[[nn.Module], nn.ModuleList]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_tokens: int
    call: tuple[tuple[str, bool], ...] = ()


def vision_config(folder: Path) -> PreTrainedConfig:
    """Configuration of the vision transformer in a folder, of the vision tower where there are two.

    Raises WeightsError where `transformers` does not know it.
    """
    config = read_config(folder)
    return getattr(config, TOWER, config)


def family_of(model: ModelFolder) -> Family:
    """Family of the vision transformer in a folder, with the folder's own mean and std.

    Raises WeightsError for an architecture that is not supported.
    """
    (kind,) = config_values(model.folder, "model_type", tower=TOWER)
    if kind not in FAMILIES:
        raise WeightsError(
            f"encoder {model.label}: architecture {kind!r} is not supported; known: {', '.join(FAMILIES)}"
        )
    family = FAMILIES[kind]
    mean, std = read_normalisation(model.folder) or (family.mean, family.std)
    return replace(family, mean=mean, std=std)


def _headless(architecture: str, folder: Path) -> nn.Module:
    """A SigLIP tower without the pooling over its last block, which no tap needs."""
    config = vision_config(folder)
    config.vision_use_head = False
    return load_tower(architecture, folder, config)


class _Patched(nn.Module):
    """SigLIP2's tower of any resolution (NaFlex), which takes patches, made to take pictures like the others."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.tower = _headless("Siglip2VisionModel", folder)
        self.config = self.tower.config

    def forward(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """Pictures (B, 3, H, W) float32 to the tower's output."""
        size = self.config.patch_size
        windows = pixel_values.unfold(2, size, size).unfold(3, size, size)
        patches = windows.permute(0, 2, 3, 4, 5, 1)  # (B, gh, gw, size, size, 3)
        grid = torch.tensor(patches.shape[1:3]).expand(len(patches), -1)
        patches = patches.flatten(3).flatten(1, 2)
        mask = patches.new_ones(patches.shape[:2], dtype=torch.long)
        return self.tower(patches, pixel_attention_mask=mask, spatial_shapes=grid)


def _layers(model: nn.Module) -> nn.ModuleList:
    return getattr(model, "vision_model", model).encoder.layers


_RESIZED = (("interpolate_pos_encoding", True),)
FAMILIES = {
    "dinov2": Family(
        partial(load_tower, "Dinov2Model"),
        lambda model: model.encoder.layer,
        IMAGENET_MEAN,
        IMAGENET_STD,
        class_tokens=1,
    ),
    "clip_vision_model": Family(
        partial(load_tower, "CLIPVisionModel"), _layers, CLIP_MEAN, CLIP_STD, class_tokens=1, call=_RESIZED
    ),
    "siglip_vision_model": Family(
        partial(_headless, "SiglipVisionModel"), _layers, SIGLIP_MEAN, SIGLIP_STD, class_tokens=0, call=_RESIZED
    ),
    "siglip2_vision_model": Family(
        _Patched, lambda model: _layers(model.tower), SIGLIP_MEAN, SIGLIP_STD, class_tokens=0
    ),
}

"""Frozen image encoders: slices in, patch features of four intermediate blocks out.

One decision: blocks are tapped by forward hooks on the raw block outputs (METHOD section 3: no final LayerNorm, class token
dropped), so one class serves every vision transformer of `transformers`; a family only says where its blocks are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medad_core.config import ModelSettings
from medad_core.errors import WeightsError
from medad_core.models.blocks import Block, cast_products
from medad_core.models.loading import load_tower, open_tensors, read_config, read_normalisation
from medad_core.models.resolve import LOCAL, ModelFolder, model_folder, model_sha256, weight_files

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)


class Encoder(Protocol):
    """What the maps stage needs of an image encoder."""

    taps: int
    width: int
    device: torch.device
    joint: int | None
    fingerprint: dict[str, str]

    def encode(self, images: np.ndarray | Tensor) -> Tensor:
        """uint8 slices (B, H, W) to patch features (B, taps, grid_h, grid_w, width)."""

    def encode_with_embedding(self, images: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the slices in the joint space of images and texts (B, joint), where there is one (`joint` is its width)."""


@dataclass(frozen=True)
class Family:
    """How one architecture of `transformers` is loaded and tapped."""

    load: Callable[[Path], nn.Module]
    blocks: Callable[[nn.Module], nn.ModuleList]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    class_tokens: int
    # CLIP refuses other sizes than its own unless it is told to interpolate its positions; DINOv2 always does.
    call: tuple[tuple[str, bool], ...] = ()


def _vision_config(folder: Path):
    """Configuration of the vision transformer in a folder, of the vision tower where there are two."""
    config = read_config(folder)
    return getattr(config, "vision_config", config)


def _headless(architecture: str, folder: Path) -> nn.Module:
    """A SigLIP tower without the pooling over its last block, which no tap needs."""
    config = _vision_config(folder)
    config.vision_use_head = False
    return load_tower(architecture, folder, config)


class _Patched(nn.Module):
    """SigLIP2's tower of any resolution (NaFlex), which wants patches, given pictures (B, 3, H, W) like the others."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.tower = _headless("Siglip2VisionModel", folder)
        self.config = self.tower.config

    def forward(self, pixel_values: Tensor):
        size = self.config.patch_size
        patches = (
            pixel_values.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 4, 5, 1)
        )  # (B, gh, gw, size, size, 3)
        grid = torch.tensor(patches.shape[1:3]).expand(len(patches), -1)
        patches = patches.flatten(3).flatten(1, 2)
        return self.tower(
            patches, pixel_attention_mask=patches.new_ones(patches.shape[:2], dtype=torch.long), spatial_shapes=grid
        )


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


def quarter_blocks(depth: int) -> tuple[int, ...]:
    """Blocks at a quarter, half, three quarters and the end, counted from 1: (8, 16, 24, 32) of 32, (3, 6, 9, 12) of 12."""
    return tuple(round(depth * quarter / 4) for quarter in (1, 2, 3, 4))


class VisionTransformerEncoder(nn.Module):
    """A frozen vision transformer, tapped at four depths. `precision` is that of its matrix products (see `blocks`)."""

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        image_size: int = 224,
        precision: str = "float32",
        fingerprint: dict[str, str] | None = None,
        projection: Tensor | None = None,
    ) -> None:
        """`projection` (joint, width), where there is one, takes the class token into the joint space of images and texts."""
        super().__init__()
        self.family, self.image_size, self.precision = family, image_size, precision
        blocks = family.blocks(model)  # a list that is changed in place
        for number, block in enumerate(blocks):
            blocks[number] = Block(block)
        self.model = cast_products(model.eval().requires_grad_(False), precision)
        self.tapped = quarter_blocks(len(blocks))
        self.taps, self.width = len(self.tapped), model.config.hidden_size
        self.grid = image_size // model.config.patch_size
        self._outputs: dict[int, Tensor] = {}
        for number in self.tapped:
            blocks[number - 1].register_forward_hook(self._keep(number))
        self.register_buffer("mean", torch.tensor(family.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(family.std).view(3, 1, 1), persistent=False)
        self.register_buffer("projection", projection, persistent=False)
        self.fingerprint = fingerprint or {}

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def blocks(self) -> nn.ModuleList:
        return self.family.blocks(self.model)

    @property
    def joint(self) -> int | None:
        return None if self.projection is None else self.projection.shape[0]

    def _keep(self, number: int) -> Callable:
        def hook(_module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> None:
            self._outputs[number] = output[0] if isinstance(output, tuple) else output

        return hook

    def compile_blocks(self, backend: str | Callable = "inductor") -> None:
        """Let torch.compile fuse what lies between the matrix products. Blocks are alike, so one is compiled for all, at its first call."""
        for block in self.blocks:
            block.forward = torch.compile(block.forward, dynamic=True, backend=backend)

    def prepare(self, images: np.ndarray | Tensor) -> Tensor:
        """uint8 slices (B, H, W) to normalised pictures (B, 3, S, S) on the encoder's device: centred on a black square, resized, repeated over channels."""
        pictures = torch.as_tensor(images).to(self.device).unsqueeze(1).float() / 255
        pictures = F.interpolate(
            pad_to_square(pictures),
            size=(self.image_size, self.image_size),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        return (pictures - self.mean) / self.std

    def encode(self, images: np.ndarray | Tensor) -> Tensor:
        """See `Encoder.encode`. float32, on the encoder's device."""
        return self._forward(images)[0]

    def encode_with_embedding(self, images: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
        """See `Encoder.encode_with_embedding`. Class token → last LayerNorm → projection → L2 norm 1; float32. Raises WeightsError without joint space."""
        if self.projection is None:
            raise WeightsError(NO_JOINT.format(name=self.fingerprint["encoder"]))
        features, pooled = self._forward(images)
        return features, F.normalize(pooled.float() @ self.projection.T, dim=-1)

    @torch.inference_mode()
    def _forward(self, images: np.ndarray | Tensor) -> tuple[Tensor, Tensor | None]:
        """Patch features, and the class token after the last LayerNorm (B, width), None of a family without class token."""
        self._outputs.clear()
        pooled = self.model(pixel_values=self.prepare(images), **dict(self.family.call)).pooler_output
        taps = torch.stack([self._outputs[number] for number in self.tapped], dim=1)[:, :, self.family.class_tokens :]
        self._outputs.clear()
        return taps.unflatten(2, (self.grid, self.grid)).float(), pooled


PROJECTION = "visual_projection.weight"
NO_JOINT = "encoder {name}: it has no joint space of images and texts, which these weights need; name a CLIP folder with both towers, or ImageBind"


def pad_to_square(pictures: Tensor) -> Tensor:
    """(..., H, W) to (..., S, S) with S = max(H, W): zeros added equally on both sides, so anatomy keeps its proportions."""
    height, width = pictures.shape[-2:]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    return F.pad(pictures, (left, side - width - left, top, side - height - top))


def _vision(found: ModelFolder) -> tuple[Family, int]:
    """Family of the vision transformer in a folder, with the folder's own mean and std, and its depth."""
    config = _vision_config(found.folder)
    if config.model_type not in FAMILIES:
        raise WeightsError(
            f"encoder {found.label}: architecture {config.model_type!r} is not supported; known: {', '.join(FAMILIES)}"
        )
    family = FAMILIES[config.model_type]
    mean, std = read_normalisation(found.folder) or (family.mean, family.std)
    return replace(family, mean=mean, std=std), config.num_hidden_layers


def encoder_folder(name: str, *, where: ModelSettings = LOCAL) -> Path:
    """The folder of an image encoder: packaged, preset, or the local `transformers` folder that is named."""
    return model_folder(name, "image encoder", where).folder


def encoder_fingerprint(name: str, image_size: int = 224, *, where: ModelSettings = LOCAL) -> dict[str, str]:
    """What determines an encoder's features; loads no model. Raises UsageError or WeightsError where there is none."""
    return _fingerprint(model_folder(name, "image encoder", where), image_size)


def _fingerprint(found: ModelFolder, image_size: int) -> dict[str, str]:
    family, depth = _vision(found)
    usual = {(each.mean, each.std) for each in FAMILIES.values() if each.load == family.load}
    scale = "" if (family.mean, family.std) in usual else f", mean {family.mean}, std {family.std}"
    return {
        "encoder": found.label,
        "encoder_sha256": model_sha256(found),
        "encoder_input": f"{image_size} px, blocks {quarter_blocks(depth)}{scale}",
    }


def load_encoder(
    name: str, device: str = "cpu", precision: str = "float32", image_size: int = 224, *, where: ModelSettings = LOCAL
) -> VisionTransformerEncoder:
    """An image encoder by name (packaged or preset), or from a local `transformers` folder. Raises UsageError or WeightsError with what is known."""
    found = model_folder(name, "image encoder", where)
    family, _ = _vision(found)
    return VisionTransformerEncoder(
        family.load(found.folder),
        family,
        image_size,
        precision,
        _fingerprint(found, image_size),
        _projection(found.folder),
    ).to(device)


def encoder_width(name: str, *, where: ModelSettings = LOCAL) -> int:
    """Width of an encoder's patch features; loads no model."""
    return _vision_config(encoder_folder(name, where=where)).hidden_size


def joint_width(name: str, *, where: ModelSettings = LOCAL) -> int | None:
    """Width of an encoder's joint space, None where it has none; loads no model."""
    projection = _projection(encoder_folder(name, where=where))
    return None if projection is None else projection.shape[0]


def _projection(folder: Path) -> Tensor | None:
    """The bias-free projection (joint, width) of a CLIP folder into the joint space, float32; None where there is none."""
    for file in weight_files(folder):
        with open_tensors(file) as tensors:
            if PROJECTION in tensors.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                return tensors.get_tensor(PROJECTION).float()
    return None

"""Frozen image encoders: slices in, patch features of four intermediate blocks out.

One decision: blocks are tapped by forward hooks on the raw block outputs (no final LayerNorm, class token dropped), so
one class serves every vision transformer of `transformers`; a family says where its blocks are.
Source: medad_core/README.md, "The image encoder".
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medad_core.config import ModelSettings
from medad_core.errors import WeightsError
from medad_core.models.blocks import Block, cast_products
from medad_core.models.loading import config_values, open_tensors
from medad_core.models.resolve import LOCAL, ModelFolder, model_folder, model_sha256, weight_files
from medad_core.models.vision import FAMILIES, TOWER, Family, family_of, vision_config

PROJECTION = "visual_projection.weight"
NO_JOINT = (
    "encoder {name}: it has no joint space of images and texts, which these weights need; "
    "name a CLIP folder with both towers, or ImageBind"
)


class Encoder(Protocol):
    """What the maps stage needs of an image encoder; `joint` is the width of the joint space of images and texts."""

    taps: int
    width: int
    device: torch.device
    joint: int | None
    fingerprint: dict[str, str]

    def encode(self, images: np.ndarray | Tensor) -> Tensor:
        """uint8 slices (B, H, W), or (B, 3, H, W), to patch features (B, taps, grid_h, grid_w, width)."""

    def encode_with_embedding(self, images: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the embeddings of the slices in the joint space (B, joint), where there is one."""


class _Outputs(threading.local):
    """The outputs of the tapped blocks in this thread's forward pass, by number."""

    def __init__(self) -> None:
        self.of: dict[int, Tensor] = {}


def quarter_blocks(depth: int) -> tuple[int, ...]:
    """Blocks at a quarter, half, three quarters and the end, counted from 1: (3, 6, 9, 12) of 12."""
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
        """`projection` (joint, width), where there is one, maps the class token into the joint space."""
        super().__init__()
        self.family = family
        self.image_size = image_size
        self.precision = precision
        blocks = family.blocks(model)  # a list that is changed in place
        for number, block in enumerate(blocks):
            blocks[number] = Block(block)
        self.model = cast_products(model.eval().requires_grad_(False), precision)
        self.tapped = quarter_blocks(len(blocks))
        self.taps = len(self.tapped)
        self.width = model.config.hidden_size
        self.grid = image_size // model.config.patch_size
        self._outputs = _Outputs()
        for number in self.tapped:
            blocks[number - 1].register_forward_hook(self._keep(number))
        self.register_buffer("mean", torch.tensor(family.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(family.std).view(3, 1, 1), persistent=False)
        self.register_buffer("projection", projection, persistent=False)
        self.fingerprint = fingerprint or {}

    @property
    def device(self) -> torch.device:
        """Where the encoder computes."""
        return self.mean.device

    @property
    def blocks(self) -> nn.ModuleList:
        """All blocks, in order."""
        return self.family.blocks(self.model)

    @property
    def joint(self) -> int | None:
        """Width of the joint space, None where there is none."""
        return None if self.projection is None else self.projection.shape[0]

    def _keep(self, number: int) -> Callable:
        def hook(_module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> None:
            self._outputs.of[number] = output[0] if isinstance(output, tuple) else output

        return hook

    def compile_blocks(self, backend: str | Callable = "inductor") -> None:
        """Let torch.compile fuse the operations between matrix products.

        Blocks are alike, so one is compiled for all, at its first call.
        """
        for block in self.blocks:
            block.forward = torch.compile(block.forward, dynamic=True, backend=backend)

    def prepare(self, images: np.ndarray | Tensor) -> Tensor:
        """uint8 slices (B, H, W) to normalised pictures (B, 3, S, S) float32 on the encoder's device.

        A slice is centred on a black square, resized, and repeated over channels. (B, 3, H, W) are a slice and its
        neighbours, a channel each.
        """
        pictures = torch.as_tensor(images).to(self.device).float() / 255
        if pictures.ndim == 3:
            pictures = pictures.unsqueeze(1)
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
        """See `Encoder.encode_with_embedding`. Class token → last LayerNorm → projection → L2 norm 1; float32.

        Raises WeightsError where there is no joint space.
        """
        if self.projection is None:
            raise WeightsError(NO_JOINT.format(name=self.fingerprint["encoder"]))
        features, pooled = self._forward(images)
        return features, F.normalize(pooled.float() @ self.projection.T, dim=-1)

    @torch.inference_mode()
    def _forward(self, images: np.ndarray | Tensor) -> tuple[Tensor, Tensor | None]:
        """Patch features, and the class token after the last LayerNorm (B, width), None where there is none."""
        outputs = self._outputs.of
        outputs.clear()
        pooled = self.model(pixel_values=self.prepare(images), **dict(self.family.call)).pooler_output
        taps = torch.stack([outputs[number] for number in self.tapped], dim=1)[:, :, self.family.class_tokens :]
        outputs.clear()
        return taps.unflatten(2, (self.grid, self.grid)).float(), pooled


def pad_to_square(pictures: Tensor) -> Tensor:
    """(..., H, W) to (..., S, S) with S = max(H, W).

    Zeros are added equally on both sides, so anatomy keeps its proportions.
    """
    height, width = pictures.shape[-2:]
    side = max(height, width)
    top = (side - height) // 2
    left = (side - width) // 2
    return F.pad(pictures, (left, side - width - left, top, side - height - top))


def encoder_folder(name: str, *, where: ModelSettings = LOCAL) -> Path:
    """The folder of an image encoder: packaged, preset, or the local `transformers` folder that is named."""
    return model_folder(name, "image encoder", where).folder


def encoder_fingerprint(name: str, image_size: int = 224, *, where: ModelSettings = LOCAL) -> dict[str, str]:
    """What determines an encoder's features; loads no model. Raises UsageError or WeightsError where there is none."""
    return _fingerprint(model_folder(name, "image encoder", where), image_size)


def _fingerprint(model: ModelFolder, image_size: int) -> dict[str, str]:
    family = family_of(model)
    patch, depth = config_values(model.folder, "patch_size", "num_hidden_layers", tower=TOWER)
    if image_size % patch:
        raise WeightsError(
            f"encoder {model.label}: pictures of {image_size} pixels are no whole number of its patches of "
            f"{patch}; set train.image_pixels to a multiple, or take the encoder of the weights"
        )
    usual = {(known.mean, known.std) for known in FAMILIES.values() if known.load == family.load}
    scale = "" if (family.mean, family.std) in usual else f", mean {family.mean}, std {family.std}"
    return {
        "encoder": model.label,
        "encoder_sha256": model_sha256(model),
        "encoder_input": f"{image_size} px, blocks {quarter_blocks(depth)}{scale}",
    }


def load_encoder(
    name: str, device: str = "cpu", precision: str = "float32", image_size: int = 224, *, where: ModelSettings = LOCAL
) -> VisionTransformerEncoder:
    """An image encoder by name (packaged or preset), or from a local `transformers` folder.

    Raises UsageError or WeightsError, naming what is known, where there is none or it cannot be read.
    """
    model = model_folder(name, "image encoder", where)
    family = family_of(model)
    return VisionTransformerEncoder(
        family.load(model.folder),
        family,
        image_size,
        precision,
        _fingerprint(model, image_size),
        _projection(model.folder),
    ).to(device)


def encoder_width(name: str, *, where: ModelSettings = LOCAL) -> int:
    """Width of an encoder's patch features; loads no model."""
    return vision_config(encoder_folder(name, where=where)).hidden_size


def joint_width(name: str, *, where: ModelSettings = LOCAL) -> int | None:
    """Width of an encoder's joint space, None where it has none; loads no model."""
    projection = _projection(encoder_folder(name, where=where))
    return None if projection is None else projection.shape[0]


def _projection(folder: Path) -> Tensor | None:
    """A CLIP folder's bias-free projection into the joint space (joint, width) float32; None where there is none."""
    for file in weight_files(folder):
        with open_tensors(file) as tensors:
            if PROJECTION in tensors.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                return tensors.get_tensor(PROJECTION).float()
    return None

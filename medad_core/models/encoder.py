"""Frozen image encoders: slices in, patch features of four intermediate blocks out.

One decision: blocks are tapped by forward hooks on the raw block outputs (METHOD section 3: no final LayerNorm, class token
dropped), so one class serves every vision transformer of `transformers`; a family only says where its blocks are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from medad_core.errors import WeightsError
from medad_core.models.cache import sha256_of
from medad_core.models.pack import PACK, packaged

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Encoder(Protocol):
    """What the maps stage needs of an image encoder."""

    taps: int
    width: int
    joint: int | None
    fingerprint: dict[str, str]

    def encode(self, images: np.ndarray) -> Tensor:
        """uint8 slices (B, H, W) to patch features (B, taps, grid_h, grid_w, width)."""

    def encode_with_embedding(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
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


def _dinov2(folder: Path) -> nn.Module:
    from transformers import Dinov2Model

    return Dinov2Model.from_pretrained(folder, local_files_only=True, dtype=torch.float32)


def _clip(folder: Path) -> nn.Module:
    from transformers import CLIPVisionModel

    return CLIPVisionModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)


def _clip_blocks(model: nn.Module) -> nn.ModuleList:
    return getattr(model, "vision_model", model).encoder.layers


_CLIP = Family(_clip, _clip_blocks, CLIP_MEAN, CLIP_STD, class_tokens=1, call=(("interpolate_pos_encoding", True),))
FAMILIES = {
    "dinov2": Family(_dinov2, lambda model: model.encoder.layer, IMAGENET_MEAN, IMAGENET_STD, class_tokens=1),
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
}


def quarter_blocks(depth: int) -> tuple[int, ...]:
    """Blocks at a quarter, half, three quarters and the end, counted from 1: (8, 16, 24, 32) of 32, (3, 6, 9, 12) of 12."""
    return tuple(round(depth * quarter / 4) for quarter in (1, 2, 3, 4))


class VisionTransformerEncoder(nn.Module):
    """A frozen vision transformer of a local `transformers` folder, tapped at four depths."""

    def __init__(self, name: str, folder: Path, image_size: int = 224) -> None:
        super().__init__()
        config = _config(name, folder)
        self.family = FAMILIES["clip" if config.model_type.startswith("clip") else config.model_type]
        self.model = self.family.load(folder).eval().requires_grad_(False)
        self.image_size = image_size
        blocks = self.family.blocks(self.model)
        self.tapped = quarter_blocks(len(blocks))
        self.taps, self.width = len(self.tapped), self.model.config.hidden_size
        self.grid = image_size // self.model.config.patch_size
        self._outputs: dict[int, Tensor] = {}
        for number in self.tapped:
            blocks[number - 1].register_forward_hook(self._keep(number))
        self.register_buffer("mean", torch.tensor(self.family.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.family.std).view(3, 1, 1), persistent=False)
        self.register_buffer("projection", joint_projection(folder), persistent=False)
        self.fingerprint = encoder_fingerprint(name, folder, image_size)

    def _keep(self, number: int) -> Callable:
        def hook(_module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> None:
            self._outputs[number] = output[0] if isinstance(output, tuple) else output

        return hook

    def prepare(self, images: np.ndarray) -> Tensor:
        """uint8 slices (B, H, W) to normalised pictures (B, 3, S, S): centred on a black square, resized, repeated over channels."""
        pictures = torch.from_numpy(images).to(self.mean.device, torch.float32).unsqueeze(1) / 255
        pictures = F.interpolate(pad_to_square(pictures), size=(self.image_size, self.image_size), mode="bilinear", align_corners=False, antialias=True)
        return (pictures - self.mean) / self.std

    @property
    def joint(self) -> int | None:
        return None if self.projection is None else self.projection.shape[0]

    def encode(self, images: np.ndarray) -> Tensor:
        """See `Encoder.encode`. float32, on the encoder's device."""
        return self._forward(images)[0]

    def encode_with_embedding(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        """See `Encoder.encode_with_embedding`. Class token → last LayerNorm → projection → L2 norm 1; float32. Raises WeightsError without joint space."""
        if self.projection is None:
            raise WeightsError(NO_JOINT.format(name=self.fingerprint["encoder"]))
        features, pooled = self._forward(images)
        return features, F.normalize(pooled.float() @ self.projection.T, dim=-1)

    @torch.inference_mode()
    def _forward(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        """Patch features, and the class token after the last LayerNorm (B, width)."""
        self._outputs.clear()
        pooled = self.model(pixel_values=self.prepare(images), **dict(self.family.call)).pooler_output
        taps = torch.stack([self._outputs[number] for number in self.tapped], dim=1)[:, :, self.family.class_tokens :]
        self._outputs.clear()
        return taps.unflatten(2, (self.grid, self.grid)).float(), pooled


PROJECTION = "visual_projection.weight"
NO_JOINT = "encoder {name}: it has no joint space of images and texts, which these weights need; name a CLIP folder with both towers, or ImageBind"


def joint_projection(folder: Path) -> Tensor | None:
    """The bias-free projection (joint, width) of a CLIP folder into the joint space, float32; None where there is none."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if PROJECTION in tensors.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                return tensors.get_tensor(PROJECTION).float()
    return None


def encoder_width(name: str) -> int:
    """Width of an encoder's patch features; loads no model. Raises WeightsError where there is none."""
    return _config(name, encoder_folder(name)).hidden_size


def joint_width(name: str) -> int | None:
    """Width of an encoder's joint space, None where it has none; loads no model."""
    projection = joint_projection(encoder_folder(name))
    return None if projection is None else projection.shape[0]


def pad_to_square(pictures: Tensor) -> Tensor:
    """(..., H, W) to (..., S, S) with S = max(H, W): zeros added equally on both sides, so anatomy keeps its proportions."""
    height, width = pictures.shape[-2:]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    return F.pad(pictures, (left, side - width - left, top, side - height - top))


def _config(name: str, folder: Path):
    """Configuration of the vision transformer in a folder, of the vision tower where there are two."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise WeightsError(f"encoder {name}: {folder} holds no config.json; name a packaged encoder ({', '.join(ENCODERS)}) or a transformers folder")
    if not (folder / "model.safetensors").is_file():
        raise WeightsError(f"encoder {name}: {folder} holds no model.safetensors; save the model as one safetensors file (pickles are not read)")
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type not in FAMILIES:
        raise WeightsError(f"encoder {name}: architecture {config.model_type!r} is not supported; known: {', '.join(FAMILIES)}")
    return getattr(config, "vision_config", config)


ENCODERS = ("dinov2-small",)


def encoder_folder(name: str) -> Path:
    """The folder of a packaged encoder, or the local `transformers` folder that is named."""
    return packaged(name).folder if name in PACK else Path(name)


def encoder_fingerprint(name: str, folder: Path | None = None, image_size: int = 224) -> dict[str, str]:
    """What determines an encoder's features; loads no model. Raises WeightsError where there is none."""
    folder = folder or encoder_folder(name)
    blocks = quarter_blocks(_config(name, folder).num_hidden_layers)
    return {"encoder": name if name in PACK else folder.name, "encoder_sha256": sha256_of(folder / "model.safetensors"), "encoder_input": f"{image_size} px, blocks {blocks}"}


def load_encoder(name: str, device: str = "cpu") -> VisionTransformerEncoder:
    """A packaged encoder by name, or one from a local `transformers` folder. Raises WeightsError with what is known."""
    return VisionTransformerEncoder(name, encoder_folder(name)).to(device)


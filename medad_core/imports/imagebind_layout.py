"""Where ImageBind's tensors belong in CLIP.

One decision: every tensor of vision and text is used exactly once; those of the other modalities are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

OTHERS = ("audio", "depth", "thermal", "imu")
ROOMS = ("modality_preprocessors", "modality_trunks", "modality_heads", "modality_postprocessors")
PATCH_KERNEL = "modality_preprocessors.vision.rgbt_stem.proj.1.weight"
VISION_POSITIONS = "modality_preprocessors.vision.pos_embedding_helper.pos_embed"
VISION_HEAD = "modality_heads.vision.2.weight"
TOKEN_EMBEDDING = "modality_preprocessors.text.token_embedding.weight"
TEXT_POSITIONS = "modality_preprocessors.text.pos_embed"
BLOCK = re.compile(r"modality_trunks\.(vision|text)\.blocks\.(\d+)\.(.+)")

# ImageBind's name to CLIP's; what has to be reshaped or split besides is below.
_NAMES = {
    "modality_preprocessors.vision.cls_token": "vision_model.embeddings.class_embedding",
    PATCH_KERNEL: "vision_model.embeddings.patch_embedding.weight",
    VISION_POSITIONS: "vision_model.embeddings.position_embedding.weight",
    "modality_trunks.vision.pre_transformer_layer.0.weight": "vision_model.pre_layrnorm.weight",
    "modality_trunks.vision.pre_transformer_layer.0.bias": "vision_model.pre_layrnorm.bias",
    "modality_heads.vision.0.weight": "vision_model.post_layernorm.weight",
    "modality_heads.vision.0.bias": "vision_model.post_layernorm.bias",
    VISION_HEAD: "visual_projection.weight",
    TOKEN_EMBEDDING: "text_model.embeddings.token_embedding.weight",
    TEXT_POSITIONS: "text_model.embeddings.position_embedding.weight",
    "modality_heads.text.proj.0.weight": "text_model.final_layer_norm.weight",
    "modality_heads.text.proj.0.bias": "text_model.final_layer_norm.bias",
    "modality_heads.text.proj.1.weight": "text_projection.weight",
    "modality_postprocessors.text.1.log_logit_scale": "logit_scale",
}
_MASK = "modality_preprocessors.text.mask"  # a buffer: the causal mask, which CLIP builds itself
_IN_BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "norm_1": "layer_norm1",
    "norm_2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def is_other(name: str) -> bool:
    """Whether a tensor belongs to a modality that medad does not use."""
    room, _, rest = name.partition(".")
    return room in ROOMS and rest.partition(".")[0] in OTHERS


def tower_size(state: Mapping[str, Tensor], tower: str) -> dict[str, int]:
    """Depth, and width of the hidden layers, of the tower "vision" or "text", in the words of CLIP's configuration.

    Raises KeyError where it has no block, ValueError where a tensor is no matrix.
    """
    blocks = [match for match in map(BLOCK.fullmatch, state) if match and match[1] == tower]
    hidden, _ = state[f"modality_trunks.{tower}.blocks.0.mlp.fc1.weight"].shape
    return {"num_hidden_layers": max(int(block[2]) for block in blocks) + 1, "intermediate_size": hidden}


def to_clip(name: str, tensor: Tensor) -> dict[str, Tensor] | None:
    """One of ImageBind's tensors as CLIP's, none, one or three of them by CLIP's names; None where it is unknown."""
    if name == _MASK:
        causal = torch.full(tensor.shape, float("-inf")).triu_(1)
        return {} if torch.equal(tensor.float(), causal) else None
    if match := BLOCK.fullmatch(name):
        return _block_to_clip(f"{match[1]}_model.encoder.layers.{match[2]}", match[3], tensor)
    if name not in _NAMES:
        return None
    if name == PATCH_KERNEL:
        tensor = tensor.float().sum(2)  # an image is two equal frames, so a kernel over time is the sum of its two
    elif name.endswith("pos_embed"):
        tensor = tensor.squeeze(0)
    elif name.endswith("cls_token"):
        tensor = tensor.flatten()
    return {_NAMES[name]: tensor}


def _block_to_clip(layer: str, name: str, tensor: Tensor) -> dict[str, Tensor] | None:
    if name in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = name.rpartition("_")[2]
        query, key, value = tensor.chunk(3)
        return {
            f"{layer}.self_attn.q_proj.{kind}": query,
            f"{layer}.self_attn.k_proj.{kind}": key,
            f"{layer}.self_attn.v_proj.{kind}": value,
        }
    module, _, kind = name.rpartition(".")
    return {f"{layer}.{_IN_BLOCK[module]}.{kind}": tensor} if module in _IN_BLOCK else None

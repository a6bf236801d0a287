"""ImageBind's vision and text towers as a CLIP folder, from `imagebind_huge.pth` and without ImageBind's code.

One decision: both towers are plain pre-norm transformers, so they are CLIP's with other names. Sizes are read
from the tensors; only the numbers of heads cannot be (16 and 16 in the published file). Every tensor of vision and text is
used exactly once; those of the other modalities are counted and left out.
Source: Girdhar et al. 2023, "ImageBind: One Embedding Space To Bind Them All"; weights CC BY-NC-SA 4.0. See
medad_core/README.md, "The image encoder".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medad_core.errors import WeightsError
from medad_core.imports.checkpoint import read_state
from medad_core.imports.clip_tokenizer import VOCABULARY, write_tokenizer
from medad_core.imports.folder import check_new, write_new
from medad_core.models.cache import ConvertedModel, sha256_of

WHAT = "ImageBind's imagebind_huge.pth"
LICENCE = "CC BY-NC-SA 4.0 (Meta AI, ImageBind): not for commercial use"
OTHERS = ("audio", "depth", "thermal", "imu")
ROOMS = ("modality_preprocessors", "modality_trunks", "modality_heads", "modality_postprocessors")

# ImageBind's name to CLIP's; what has to be reshaped or split besides is below.
_NAMES = {
    "modality_preprocessors.vision.cls_token": "vision_model.embeddings.class_embedding",
    "modality_preprocessors.vision.rgbt_stem.proj.1.weight": "vision_model.embeddings.patch_embedding.weight",
    "modality_preprocessors.vision.pos_embedding_helper.pos_embed": "vision_model.embeddings.position_embedding.weight",
    "modality_trunks.vision.pre_transformer_layer.0.weight": "vision_model.pre_layrnorm.weight",
    "modality_trunks.vision.pre_transformer_layer.0.bias": "vision_model.pre_layrnorm.bias",
    "modality_heads.vision.0.weight": "vision_model.post_layernorm.weight",
    "modality_heads.vision.0.bias": "vision_model.post_layernorm.bias",
    "modality_heads.vision.2.weight": "visual_projection.weight",
    "modality_preprocessors.text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "modality_preprocessors.text.pos_embed": "text_model.embeddings.position_embedding.weight",
    "modality_heads.text.proj.0.weight": "text_model.final_layer_norm.weight",
    "modality_heads.text.proj.0.bias": "text_model.final_layer_norm.bias",
    "modality_heads.text.proj.1.weight": "text_projection.weight",
    "modality_postprocessors.text.1.log_logit_scale": "logit_scale",
}
_MASK = "modality_preprocessors.text.mask"  # a buffer: the causal mask, which CLIP builds itself
_BLOCK = re.compile(r"modality_trunks\.(vision|text)\.blocks\.(\d+)\.(.+)")
_IN_BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "norm_1": "layer_norm1",
    "norm_2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


@dataclass(frozen=True)
class Imported:
    """The written folder with its record; how many tensors of vision and text were used, and how many of other modalities left out."""

    model: ConvertedModel
    tensors: int
    ignored: int


def import_imagebind(checkpoint: Path, folder: Path, vision_heads: int = 16, text_heads: int = 16) -> Imported:
    """Convert `checkpoint` into `folder`, which `transformers.CLIPModel` loads; the folder appears complete or not at all.

    dtype stays that of the file, the patch kernel aside: it is a sum of two and kept in float32. Raises UsageError where a path is wrong,
    WeightsError where the file is not ImageBind's, naming the tensors that are missing, unknown or of an impossible shape.
    """
    check_new(folder)
    state = read_state(checkpoint, WHAT)
    ours = {name: tensor for name, tensor in state.items() if not _is_other(name)}
    try:
        config = _config(ours, vision_heads, text_heads, checkpoint)
        tensors = _towers(ours, checkpoint)
        _check_whole(tensors, config, checkpoint)
    except (
        ValueError,
        TypeError,
        RuntimeError,
        IndexError,
    ) as error:  # of torch, where a tensor is not even of a shape that could be wrong
        raise WeightsError(
            f"{checkpoint}: not {WHAT}, or damaged: a tensor is of an impossible shape ({str(error).splitlines()[0]})"
        ) from error

    def write(scratch: Path) -> None:
        from safetensors.torch import save_file

        write_tokenizer(scratch, config.text_config.max_position_embeddings)  # first: it may want a package
        # The heads change what the tensors compute, so they belong to what the file's hash stands for.
        heads = {"format": "pt", "vision_heads": str(vision_heads), "text_heads": str(text_heads)}
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            scratch / "model.safetensors",
            metadata=heads,
        )
        config.save_pretrained(scratch)
        (scratch / "preprocessor_config.json").write_text(
            json.dumps(_preprocessor(config.vision_config.image_size), indent=2)
        )

    model = write_new(ConvertedModel("imagebind", folder, checkpoint.name, sha256_of(checkpoint), LICENCE, {}), write)
    return Imported(model, len(ours), len(state) - len(ours))


def _is_other(name: str) -> bool:
    """Whether a tensor belongs to a modality that medad does not use."""
    room, _, rest = name.partition(".")
    return room in ROOMS and rest.partition(".")[0] in OTHERS


def _config(state: Mapping[str, Tensor], vision_heads: int, text_heads: int, path: Path):
    """A CLIP configuration of the sizes that the tensors have. Raises WeightsError where there is no such size."""
    from transformers import CLIPConfig

    try:
        joint, vision_width = state["modality_heads.vision.2.weight"].shape
        _, channels, _, patch, _ = state["modality_preprocessors.vision.rgbt_stem.proj.1.weight"].shape
        _, positions, _ = state["modality_preprocessors.vision.pos_embedding_helper.pos_embed"].shape
        vocabulary, text_width = state["modality_preprocessors.text.token_embedding.weight"].shape
        _, context, _ = state["modality_preprocessors.text.pos_embed"].shape
        towers = {tower: _tower(state, tower) for tower in ("vision", "text")}
    except KeyError as error:
        raise WeightsError(f"{path}: not {WHAT}: it has no tensor {error.args[0]}") from error
    except ValueError as error:
        raise WeightsError(f"{path}: not {WHAT}: a tensor has the wrong number of dimensions ({error})") from error
    for tower, width, heads in (("vision", vision_width, vision_heads), ("text", text_width, text_heads)):
        if heads < 1 or width % heads:
            raise WeightsError(
                f"{path}: {heads} {tower} heads do not divide the width {width}; say how many there are with --{tower}-heads"
            )
    if positions < 2 or round((positions - 1) ** 0.5) ** 2 != positions - 1:
        raise WeightsError(
            f"{path}: not {WHAT}: {positions} positions of vision are not those of a square picture and its class token"
        )
    if vocabulary != VOCABULARY:
        raise WeightsError(f"{path}: its vocabulary has {vocabulary} tokens, CLIP's tokenizer {VOCABULARY}")
    both = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "projection_dim": joint}
    side = patch * round((positions - 1) ** 0.5)
    vision = {
        **towers["vision"],
        "hidden_size": vision_width,
        "num_attention_heads": vision_heads,
        "image_size": side,
        "patch_size": patch,
        "num_channels": channels,
    }
    text = {
        **towers["text"],
        "hidden_size": text_width,
        "num_attention_heads": text_heads,
        "max_position_embeddings": context,
        "vocab_size": vocabulary,
    }
    # CLIPTextModel reads an end token of 2, the configuration's old default, as "take the greatest id"; ids of CLIP's own tokenizer are exact.
    tokens = {"bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1, "pad_token_id": VOCABULARY - 1}
    return CLIPConfig(text_config={**both, **text, **tokens}, vision_config={**both, **vision}, projection_dim=joint)


def _tower(state: Mapping[str, Tensor], tower: str) -> dict[str, int]:
    """Depth and width of the hidden layers of one tower."""
    numbers = [int(found[2]) for name in state if (found := _BLOCK.fullmatch(name)) and found[1] == tower]
    hidden, _ = state[f"modality_trunks.{tower}.blocks.0.mlp.fc1.weight"].shape
    return {"num_hidden_layers": max(numbers) + 1, "intermediate_size": hidden}


def _towers(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """CLIP's tensors by CLIP's names. Raises WeightsError listing every tensor of vision or text that has no place."""
    tensors: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state.items():
        placed = _placed(name, tensor)
        unknown += [name] if placed is None else []
        tensors |= placed or {}
    if unknown:
        raise WeightsError(
            f"{path}: not {WHAT}: {len(unknown)} tensors have no place in its vision and text towers: {_some(unknown)}"
        )
    return tensors


def _placed(name: str, tensor: Tensor) -> dict[str, Tensor] | None:
    """One of ImageBind's tensors as CLIP's; None where it is unknown."""
    if name == _MASK:
        causal = torch.full(tensor.shape, float("-inf")).triu_(1)
        return {} if torch.equal(tensor.float(), causal) else None
    if found := _BLOCK.fullmatch(name):
        return _placed_in_block(f"{found[1]}_model.encoder.layers.{found[2]}", found[3], tensor)
    if name not in _NAMES:
        return None
    if name.endswith(
        "rgbt_stem.proj.1.weight"
    ):  # an image is two equal frames, so a kernel over time is the sum of its two
        tensor = tensor.float().sum(2)
    elif name.endswith("pos_embed"):
        tensor = tensor.squeeze(0)
    elif name.endswith("cls_token"):
        tensor = tensor.flatten()
    return {_NAMES[name]: tensor}


def _placed_in_block(layer: str, name: str, tensor: Tensor) -> dict[str, Tensor] | None:
    if name in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = name.rpartition("_")[2]
        return {
            f"{layer}.self_attn.{part}_proj.{kind}": piece for part, piece in zip("qkv", tensor.chunk(3), strict=True)
        }
    module, _, kind = name.rpartition(".")
    return {f"{layer}.{_IN_BLOCK[module]}.{kind}": tensor} if module in _IN_BLOCK else None


def _check_whole(tensors: Mapping[str, Tensor], config, path: Path) -> None:
    """Raise WeightsError unless names and shapes are exactly those of the CLIP model of this configuration, and all are floating-point numbers."""
    from transformers import CLIPModel

    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in CLIPModel(config).state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = [f"{name} is missing" for name in expected.keys() - given.keys()] + [
        f"{name} has no place" for name in given.keys() - expected.keys()
    ]
    wrong += [
        f"{name} is {given[name]}, not {shape}" for name, shape in expected.items() if given.get(name, shape) != shape
    ]
    wrong += [f"{name} holds {tensor.dtype}" for name, tensor in tensors.items() if not tensor.is_floating_point()]
    wrong += [
        f"{name} is not finite"
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    if wrong:
        raise WeightsError(f"{path}: not {WHAT}, or damaged: {_some(wrong)} (names as in CLIP)")


def _some(names: list[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _preprocessor(side: int) -> dict:
    """How pictures are made for the vision tower, in the words of `transformers`."""
    from medad_core.models.encoder import CLIP_MEAN, CLIP_STD

    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }

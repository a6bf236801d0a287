"""ImageBind's vision and text towers as a CLIP folder, from `imagebind_huge.pth` and without ImageBind's code.

One decision: both towers are plain pre-norm transformers, so they are CLIP's with other names. Sizes are read from the
tensors; only the numbers of heads cannot be (16 and 16 in the published file). Every tensor of vision and text is used
exactly once; those of the other modalities are counted and left out. Source: Girdhar et al. 2023, "ImageBind: One
Embedding Space To Bind Them All"; weights CC BY-NC-SA 4.0. See medad_core/README.md, "The image encoder".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from medad_core.errors import WeightsError, first_line
from medad_core.imports.checkpoint import read_state
from medad_core.imports.clip_tokenizer import VOCABULARY, write_tokenizer
from medad_core.imports.folder import check_new, write_new
from medad_core.imports.imagebind_layout import (
    PATCH_KERNEL,
    TEXT_POSITIONS,
    TOKEN_EMBEDDING,
    VISION_HEAD,
    VISION_POSITIONS,
    is_other,
    to_clip,
    tower_size,
)
from medad_core.models.cache import ConvertedModel, sha256_of
from medad_core.models.vision import CLIP_MEAN, CLIP_STD

if TYPE_CHECKING:
    from transformers import CLIPConfig

WHAT = "ImageBind's imagebind_huge.pth"
LICENCE = "CC BY-NC-SA 4.0 (Meta AI, ImageBind): not for commercial use"
# For an end token of 2, the configuration's old default, CLIPTextModel takes the greatest id; these ids are exact.
TOKENS = {"bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1, "pad_token_id": VOCABULARY - 1}


@dataclass(frozen=True)
class Imported:
    """The written folder with its record.

    `tensors` of vision and text were used; `ignored` ones of other modalities were left out.
    """

    model: ConvertedModel
    tensors: int
    ignored: int


def import_imagebind(checkpoint: Path, folder: Path, vision_heads: int = 16, text_heads: int = 16) -> Imported:
    """Convert `checkpoint` into `folder`, which `transformers.CLIPModel` loads; it appears complete or not at all.

    The dtype stays that of the file, but the patch kernel is a sum of two and kept in float32. Raises UsageError where
    a path is wrong, WeightsError where the file is not ImageBind's, naming the tensors that are missing, unknown or of
    an impossible shape.
    """
    check_new(folder)
    state = read_state(checkpoint, WHAT)
    used = {name: tensor for name, tensor in state.items() if not is_other(name)}
    try:
        config = _config(used, vision_heads, text_heads, checkpoint)
        tensors = _rename(used, checkpoint)
        _check_whole(tensors, config, checkpoint)
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        # torch raises these where a tensor has not even the number of dimensions that it should have
        raise WeightsError(
            f"{checkpoint}: not {WHAT}, or damaged: a tensor is of an impossible shape ({first_line(error)})"
        ) from error

    # The heads change what the tensors compute, so they belong to what the file's hash stands for.
    metadata = {"format": "pt", "vision_heads": str(vision_heads), "text_heads": str(text_heads)}
    model = ConvertedModel("imagebind", folder, checkpoint.name, sha256_of(checkpoint), LICENCE, {})
    model = write_new(model, lambda scratch: _write(scratch, tensors, metadata, config))
    return Imported(model, len(used), len(state) - len(used))


def _write(folder: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], config: CLIPConfig) -> None:
    from safetensors.torch import save_file

    write_tokenizer(folder, config.text_config.max_position_embeddings)  # first: it may want a package
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata=metadata)
    config.save_pretrained(folder)
    preprocessor = _preprocessor(config.vision_config.image_size)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2), encoding="utf-8")


def _config(state: Mapping[str, Tensor], vision_heads: int, text_heads: int, path: Path) -> CLIPConfig:
    """A CLIP configuration of the sizes that the tensors have. Raises WeightsError where there is no such size."""
    from transformers import CLIPConfig

    try:
        joint, vision_width = state[VISION_HEAD].shape
        _, channels, _, patch, _ = state[PATCH_KERNEL].shape
        _, positions, _ = state[VISION_POSITIONS].shape
        vocabulary, text_width = state[TOKEN_EMBEDDING].shape
        _, context, _ = state[TEXT_POSITIONS].shape
        vision_size = tower_size(state, "vision")
        text_size = tower_size(state, "text")
    except KeyError as error:
        raise WeightsError(f"{path}: not {WHAT}: it has no tensor {error.args[0]}") from error
    except ValueError as error:
        raise WeightsError(f"{path}: not {WHAT}: a tensor has the wrong number of dimensions ({error})") from error
    _check_heads("vision", vision_width, vision_heads, path)
    _check_heads("text", text_width, text_heads, path)
    if vocabulary != VOCABULARY:
        raise WeightsError(f"{path}: its vocabulary has {vocabulary} tokens, CLIP's tokenizer {VOCABULARY}")
    shared = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "projection_dim": joint}
    vision = {
        **shared,
        **vision_size,
        "hidden_size": vision_width,
        "num_attention_heads": vision_heads,
        "image_size": patch * _patches_a_side(positions, path),
        "patch_size": patch,
        "num_channels": channels,
    }
    text = {
        **shared,
        **text_size,
        **TOKENS,
        "hidden_size": text_width,
        "num_attention_heads": text_heads,
        "max_position_embeddings": context,
        "vocab_size": vocabulary,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=joint)


def _check_heads(tower: str, width: int, heads: int, path: Path) -> None:
    if heads < 1 or width % heads:
        raise WeightsError(
            f"{path}: {heads} {tower} heads do not divide the width {width}; "
            f"say how many there are with --{tower}-heads"
        )


def _patches_a_side(positions: int, path: Path) -> int:
    """Patches along a side of the square picture; `positions` counts them all and the class token."""
    side = round(max(positions - 1, 0) ** 0.5)
    if side < 1 or side**2 != positions - 1:
        raise WeightsError(
            f"{path}: not {WHAT}: {positions} positions of vision are not those of a square picture and its class token"
        )
    return side


def _rename(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """CLIP's tensors by CLIP's names. Raises WeightsError naming tensors of vision or text that have no place."""
    tensors: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state.items():
        renamed = to_clip(name, tensor)
        if renamed is None:
            unknown.append(name)
        else:
            tensors |= renamed
    if unknown:
        raise WeightsError(
            f"{path}: not {WHAT}: {len(unknown)} tensors have no place in its vision and text towers: {_some(unknown)}"
        )
    return tensors


def _check_whole(tensors: Mapping[str, Tensor], config: CLIPConfig, path: Path) -> None:
    """Raise WeightsError unless names and shapes are those of the configuration's model, and all numbers finite."""
    from transformers import CLIPModel

    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in CLIPModel(config).state_dict().items()}
    wrong = [f"{name} is missing" for name in expected.keys() - tensors.keys()]
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if name not in expected:
            wrong.append(f"{name} has no place")
        elif shape != expected[name]:
            wrong.append(f"{name} is {shape}, not {expected[name]}")
        if not tensor.is_floating_point():
            wrong.append(f"{name} holds {tensor.dtype}")
        elif not tensor.isfinite().all():
            wrong.append(f"{name} is not finite")
    if wrong:
        raise WeightsError(f"{path}: not {WHAT}, or damaged: {_some(wrong)} (names as in CLIP)")


def _some(names: list[str]) -> str:
    """The first five in order, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _preprocessor(side: int) -> dict[str, Any]:
    """How pictures are made for the vision tower, in the words of `transformers`."""
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

"""The input embeddings of an LLM, read without loading it.

One decision: the embedding layer is looked up in a model without weights, then its tensor is read alone from the files.
Transformers is asked once for each configuration, because it takes seconds to import its models; what it said is kept
in the cache of converted models.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from medad_core.environment import installed_version
from medad_core.errors import MedadError, WeightsError, first_line
from medad_core.models.cache import cache_root
from medad_core.models.loading import check_layers, open_tensors, read_config
from medad_core.models.resolve import weight_files
from medad_core.store.files import make_folder, read_bytes, write_bytes


@dataclass(frozen=True)
class EmbeddingSource:
    """Where an LLM's input embeddings lie: file, tensor, and the factor that its architecture multiplies them by."""

    file: Path
    tensor: str
    scale: float


class _Layer(msgspec.Struct, forbid_unknown_fields=True):
    """The names that the tensor may have in the files, and its scale."""

    names: tuple[str, str]
    scale: float


def embedding_table(folder: Path) -> Tensor:
    """A causal LM's input embeddings of every token (vocabulary, width), float32; none of its other weights is read.

    Raises WeightsError where a folder holds no causal LM, or one whose embeddings lie under another name.
    """
    source = find_embeddings(folder)
    with open_tensors(source.file) as tensors:
        return tensors.get_tensor(source.tensor).float() * source.scale


def find_embeddings(folder: Path) -> EmbeddingSource:
    """Where a causal LM's input embeddings lie; reads headers only. Raises WeightsError as `embedding_table` does."""
    layer = _layer_of(folder)
    for file in weight_files(folder):
        with open_tensors(file) as tensors:
            stored = set(tensors.keys())
        for name in layer.names:
            if name in stored:
                return EmbeddingSource(file, name, layer.scale)
    raise WeightsError(
        f"{folder}: none of its files has a tensor {layer.names[0]}; its embeddings cannot be given from outside, "
        "choose another LLM"
    )


def _layer_of(folder: Path) -> _Layer:
    """What Transformers says of this configuration: as kept, or asked now."""
    config = read_bytes(str(folder / "config.json"))
    if config is None:
        return _ask(folder)  # which says what is wrong
    key = hashlib.sha256(f"{installed_version('transformers')} ".encode() + config).hexdigest()[:24]
    kept_at = str(cache_root() / f"embeddings-{key}.json")
    with suppress(MedadError, msgspec.MsgspecError):
        return msgspec.json.decode(read_bytes(kept_at) or b"", type=_Layer)
    layer = _ask(folder)
    with suppress(MedadError, OSError):  # it is asked again the next time
        make_folder(str(cache_root()))
        write_bytes(kept_at, msgspec.json.encode(layer))
    return layer


def _ask(folder: Path) -> _Layer:
    from transformers import AutoModelForCausalLM

    check_layers(folder)  # all of them would be made
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(read_config(folder), trust_remote_code=False)
            layer = model.get_input_embeddings()
    except (ValueError, NotImplementedError) as error:
        raise WeightsError(
            f"{folder}: is no causal language model ({first_line(error)[:160]}); choose another"
        ) from error
    full = next(name for name, module in model.named_modules() if module is layer) + ".weight"
    # A base model is saved without its prefix. Gemma multiplies the embeddings that it looks up; those that are given
    # must be multiplied before.
    names = (full, full.removeprefix(f"{model.base_model_prefix}."))
    return _Layer(names, getattr(layer, "scalar_embed_scale", 1.0))

"""The input embeddings of an LLM, read without loading it.

One decision: the embedding layer is looked up in a model without weights, then its tensor is read alone from the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medad_core.errors import WeightsError, first_line
from medad_core.models.loading import open_tensors, read_config
from medad_core.models.resolve import weight_files


@dataclass(frozen=True)
class EmbeddingSource:
    """Where an LLM's input embeddings lie: file, tensor, and the factor that its architecture multiplies them by."""

    file: Path
    tensor: str
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
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(read_config(folder), trust_remote_code=False)
            layer = model.get_input_embeddings()
    except (ValueError, NotImplementedError) as error:
        raise WeightsError(
            f"{folder}: is no causal language model ({first_line(error)[:160]}); choose another"
        ) from error
    full = next(name for name, module in model.named_modules() if module is layer) + ".weight"
    names = (full, full.removeprefix(f"{model.base_model_prefix}."))  # a base model is saved without its prefix
    for file in weight_files(folder):
        with open_tensors(file) as tensors:
            stored = set(tensors.keys())
        for name in names:
            if name in stored:
                # Gemma multiplies the embeddings that it looks up; those that are given must be multiplied before.
                return EmbeddingSource(file, name, getattr(layer, "scalar_embed_scale", 1.0))
    raise WeightsError(
        f"{folder}: none of its files has a tensor {full}; its embeddings cannot be given from outside, "
        "choose another LLM"
    )

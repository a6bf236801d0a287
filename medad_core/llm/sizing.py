"""How large an LLM is, and what follows for its engine.

One decision: sizes come from safetensors headers and config.json, so nothing is loaded to choose. The rules: up to a billion parameters
float32 and 256 prompts at once; above, the 16-bit type that the weights are stored in (bfloat16 where they are float32), and 128
prompts, 64 above 15 billion. A GPU gives what weights, the cache of that many whole prompts and 4 GiB for activations need.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path

from medad_core.models.loading import open_tensors, read_config
from medad_core.models.resolve import weight_files

BILLION = 10**9
SEQUENCES = ((BILLION, 256), (15 * BILLION, 128))
LARGEST = 64
ACTIVATIONS = 4 * 2**30
MOST_OF_A_GPU = 0.9
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
STORED = {"BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class ModelSize:
    """An LLM's parameters, the type that most of them are stored in, and the numbers that a position takes in the cache."""

    parameters: int
    stored: str
    cache_numbers: int

    @property
    def sequences(self) -> int:
        """How many prompts a GPU answers at once."""
        return next((count for limit, count in SEQUENCES if self.parameters <= limit), LARGEST)

    def bytes_needed(self, dtype: str, sequences: int, length: int) -> int:
        """Memory of weights, cache and activations, over all GPUs that share the model."""
        return BYTES[dtype] * (self.parameters + self.cache_numbers * sequences * length) + ACTIVATIONS


def model_size(folder: Path) -> ModelSize:
    """The size of the LLM in a `transformers` folder."""
    return _size(folder, tuple((file.name, file.stat().st_mtime_ns) for file in weight_files(folder)))


@lru_cache(maxsize=8)
def _size(folder: Path, files: tuple[tuple[str, int], ...]) -> ModelSize:
    counts: dict[str, int] = {}
    for file, _ in files:
        with open_tensors(folder / file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                tensor = tensors.get_slice(name)
                counts[tensor.get_dtype()] = counts.get(tensor.get_dtype(), 0) + prod(tensor.get_shape())
    config = read_config(folder).get_text_config()
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = (
        2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * head
    )  # keys and values
    return ModelSize(sum(counts.values()), STORED.get(max(counts, key=counts.__getitem__), "float32"), kept)


def resolved_dtype(folder: Path, asked: str) -> str:
    """`auto` as the module says; it depends on the model alone, so that a run means the same on every machine."""
    if asked != "auto":
        return asked
    size = model_size(folder)
    if size.parameters <= BILLION:
        return "float32"
    return "bfloat16" if size.stored == "float32" else size.stored


def gpu_share(needed: int, total: int, gpus: int) -> float:
    """The share of each of `gpus` GPUs of `total` bytes that `needed` bytes take, at most 0.9."""
    return min(MOST_OF_A_GPU, (ACTIVATIONS + (needed - ACTIVATIONS) / gpus) / total)

"""How large an LLM is, and what follows for its engine.

One decision: sizes come from safetensors headers and config.json, so nothing is loaded to choose. The rules:

* up to a billion parameters: float32, and 256 prompts at once;
* above: the 16-bit type that the weights are stored in, bfloat16 where they are float32;
* above, too: 128 prompts at once, 64 above 15 billion parameters;
* a GPU gives what the weights, the cache of that many whole prompts, and 4 GiB for activations need.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache
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
    """Number of parameters of the LLM in a folder, and their most frequent type on disk."""

    parameters: int
    stored: str
    folder: Path

    @cached_property
    def cache_numbers(self) -> int:
        """Numbers of the keys and values of one position, over all layers. Raises WeightsError."""
        config = read_config(self.folder).get_text_config()
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        key_value_heads = getattr(config, "num_key_value_heads", None) or heads
        return 2 * config.num_hidden_layers * key_value_heads * width

    @property
    def sequences(self) -> int:
        """How many prompts a GPU answers at once."""
        return next((count for limit, count in SEQUENCES if self.parameters <= limit), LARGEST)

    def bytes_needed(self, dtype: str, sequences: int, length: int) -> int:
        """Memory of weights, cache and activations, over all GPUs that share the model."""
        return BYTES[dtype] * (self.parameters + self.cache_numbers * sequences * length) + ACTIVATIONS


def model_size(folder: Path) -> ModelSize:
    """The size of the LLM in a `transformers` folder. Raises WeightsError where a file is missing or damaged."""
    states = [(file.name, file.stat().st_mtime_ns) for file in weight_files(folder)]
    return _model_size(folder, tuple(states))


@lru_cache(maxsize=8)
def _model_size(folder: Path, files: tuple[tuple[str, int], ...]) -> ModelSize:
    """The size from files of the given names; their modification times make a changed file a new key of the cache."""
    counts: Counter[str] = Counter()
    for file, _ in files:
        with open_tensors(folder / file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                tensor = tensors.get_slice(name)
                counts[tensor.get_dtype()] += prod(tensor.get_shape())
    most_frequent = max(counts, key=counts.__getitem__)
    return ModelSize(counts.total(), STORED.get(most_frequent, "float32"), folder)


def resolved_dtype(folder: Path, requested: str) -> str:
    """The type to compute in.

    `auto` follows the rules above from the model alone, so that a run means the same on every machine.
    """
    if requested != "auto":
        return requested
    size = model_size(folder)
    if size.parameters <= BILLION:
        return "float32"
    return "bfloat16" if size.stored == "float32" else size.stored


def gpu_share(needed: int, total: int, gpus: int) -> float:
    """The share of each of `gpus` GPUs of `total` bytes that `needed` bytes take, at most 0.9."""
    return min(MOST_OF_A_GPU, (ACTIVATIONS + (needed - ACTIVATIONS) / gpus) / total)

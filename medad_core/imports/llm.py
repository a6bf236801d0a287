"""A language model published as pickles (Vicuna is) as the same folder in safetensors.

One decision: shard by shard and tensor by tensor, as they are. The model is never built, so a 7B needs no more memory
than its largest shard.
"""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torch import Tensor

from medad_core.errors import UsageError, WeightsError
from medad_core.imports.checkpoint import read_state
from medad_core.imports.folder import check_new, write_new
from medad_core.models.cache import ConvertedModel, sha256_of
from medad_core.models.resolve import FETCHED, INDEX, WEIGHTS

WHAT = "the weights of a language model"
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
Index = dict[str, Any]


def import_llm(source: Path, folder: Path) -> ConvertedModel:
    """Convert a `transformers` folder with `pytorch_model*.bin` into `folder` with safetensors.

    The folder appears complete or not at all. Raises UsageError where a path is wrong, WeightsError where a file is
    missing, damaged, or holds anything else than tensors.
    """
    check_new(folder)
    if not (source / "config.json").is_file():
        raise UsageError(f"{source}: no config.json here; name the folder of a downloaded language model")
    index = _read_index(source)
    shards = sorted(set(index["weight_map"].values())) if index else [PICKLE]
    for shard in shards:
        if not (source / shard).is_file():
            raise WeightsError(f"{source}: {shard} is not here; download the model again")

    def write(scratch: Path) -> None:
        if index:
            _convert_shards(source, scratch, index, shards)
        else:
            _convert(read_state(source / PICKLE, WHAT), scratch / WEIGHTS)
        _copy_others(source, scratch)

    hashes = " ".join(sha256_of(source / shard) for shard in shards)
    return write_new(ConvertedModel(source.name, folder, " ".join(shards), hashes, "as its source", {}), write)


def _read_index(source: Path) -> Index | None:
    """Which shard holds which tensor; None where there is one file."""
    path = source / PICKLE_INDEX
    if not path.is_file():
        return None
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if all(Path(shard).name == shard for shard in index["weight_map"].values()) and index["weight_map"]:
            return index
        reason = "a shard lies elsewhere, or there is none"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error)
    raise WeightsError(f"{path}: is damaged ({reason}); download the model again")


def _convert_shards(source: Path, scratch: Path, index: Index, shards: list[str]) -> None:
    """Write every shard, and the index that names the new files."""
    renamed = {shard: shard.replace("pytorch_model", "model").replace(".bin", ".safetensors") for shard in shards}
    for shard in shards:
        state = read_state(source / shard, WHAT)
        expected = {name for name, file in index["weight_map"].items() if file == shard}
        if odd := sorted(state.keys() ^ expected):
            raise WeightsError(
                f"{source / shard}: holds other tensors than its index says, such as {odd[0]}; download the model again"
            )
        _convert(state, scratch / renamed[shard])
    weight_map = {name: renamed[shard] for name, shard in index["weight_map"].items()}
    (scratch / INDEX).write_text(json.dumps({**index, "weight_map": weight_map}, indent=2), encoding="utf-8")


def _convert(state: dict[str, Tensor], target: Path) -> None:
    from safetensors.torch import save_file

    save_file(_apart(state), target, metadata={"format": "pt"})


def _copy_others(source: Path, scratch: Path) -> None:
    """Copy configuration and tokenizer."""
    for path in sorted(source.iterdir()):
        wanted = any(fnmatch(path.name, pattern) for pattern in FETCHED)
        replaced = path.name in (PICKLE_INDEX, INDEX) or path.suffix == ".safetensors"
        if path.is_file() and wanted and not replaced:
            shutil.copyfile(path, scratch / path.name)


def _apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share memory (an output layer tied to the embeddings) made independent, as the format demands."""
    addresses: set[int] = set()
    apart = {}
    for name, tensor in state.items():
        address = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if address in addresses else tensor.contiguous()
        addresses.add(address)
    return apart

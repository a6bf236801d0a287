"""Towers, configurations and tokenizers of a local `transformers` folder, read strictly.

One decision: `from_pretrained` fills what a file lacks with random numbers and only warns; here that is an error, as is
a pickle. A folder with Python code of its own is refused, and nobody is asked: `trust_remote_code` is false wherever
the folder itself names the class.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from medad_core.errors import WeightsError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

# How configurations call their number of layers. Others of similar names, such as max_window_layers, are not one.
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers")
READ_BY_BACKEND = ("llama", "TokenizersBackend")  # model and tokenizer that AutoTokenizer has no other class for
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


def load_tower(
    architecture: str,
    folder: Path,
    config: PreTrainedConfig | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> nn.Module:
    """A class of `transformers` with the weights of `folder`, on the CPU; other towers in the same files are left out.

    `config` replaces the folder's own; `options` go to `from_pretrained`.

    Raises WeightsError where a weight is missing, of another shape, or not finite, or a file is damaged.
    """
    import transformers

    check_layers(folder, config)
    given = {"config": config} if config is not None else {}
    try:
        model, info = getattr(transformers, architecture).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
            **given,
            **options,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise WeightsError(
            f"{folder}: cannot be read as {architecture} ({first_line(error)}); get the model again"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise WeightsError(
            f"{folder}: holds no {architecture}: {len(missing)} weights are missing, such as {missing[0]}"
        )
    require_finite(model.named_parameters(), folder)
    return model


def require_finite(tensors: Iterable[tuple[str, torch.Tensor]], where: Path) -> None:
    """Raise WeightsError naming the first tensor with NaN or infinite values: every map would be of nothing."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{where}: {name} has values that are not finite; get the file again")


def check_layers(folder: Path, config: PreTrainedConfig | None = None) -> None:
    """Raise WeightsError where a configuration speaks of more layers than the folder has tensors.

    `transformers` would make them all before it misses the first weight: ten million take hours and all memory.
    """
    held = 0
    for path in folder.glob("*.safetensors"):
        with open_tensors(path) as tensors:
            held += len(tensors.keys())
    for facts in _configurations(folder, config):
        layers = _most_layers(facts)
        if held and layers > held:  # without any, the loader says what is missing
            raise WeightsError(
                f"{folder}: its config.json speaks of {layers} layers, and its files hold {held} weights; get it again"
            )


def _configurations(folder: Path, config: PreTrainedConfig | None) -> Iterator[dict[str, Any]]:
    """What the file says, before `transformers` makes lists as long as it says; then what `transformers` reads."""
    with suppress(OSError, ValueError):  # of which `transformers` says what is wrong
        stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if isinstance(stated, dict):
            yield stated
    yield (config or read_config(folder)).to_dict()


def _most_layers(facts: dict[str, Any]) -> int:
    """The largest number of layers in a configuration and those within it."""
    numbers = [facts[key] for key in LAYERS if isinstance(facts.get(key), int)]
    within = [_most_layers(value) for value in facts.values() if isinstance(value, dict)]
    return max([*numbers, *within], default=0)


def open_tensors(path: Path) -> safe_open:
    """A safetensors file, opened. Raises WeightsError where it is damaged, or is something else."""
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path}: cannot be read ({error}); the file is damaged or no safetensors, get it again"
        ) from error


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a folder. Raises WeightsError where `transformers` does not know it."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and its hub check it, with many kinds of errors that mean the same here
        raise WeightsError(f"{folder}: its config.json is not that of a known model ({first_line(error)})") from error


def config_values(folder: Path, *names: str, tower: str = "") -> tuple[Any, ...]:
    """Values of the configuration of a folder, of its part `tower` where it has one. Raises WeightsError.

    Where config.json states them all, `transformers`, which takes seconds to import, is not asked.
    """
    with suppress(OSError, ValueError, AttributeError, KeyError):  # of which transformers says what is wrong
        stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        stated = stated.get(tower, stated)
        return tuple(stated[name] for name in names)
    config = read_config(folder)
    return tuple(getattr(getattr(config, tower, config), name) for name in names)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, to be read only. A thread that asks again gets the same one, until a file changes.

    Raises WeightsError where there is none.
    """
    # Without any of these files some classes make a vocabulary of three tokens.
    if not any((folder / file).is_file() for file in VOCABULARIES):
        raise WeightsError(f"{folder}: has no tokenizer ({', '.join(VOCABULARIES)}); put its tokenizer files there")
    try:
        stamps = sorted((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in folder.iterdir())
        return _read_tokenizer(folder, tuple(stamps), threading.get_ident())
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise WeightsError(
            f"{folder}: its tokenizer cannot be read ({first_line(error)}); get its tokenizer files again"
        ) from error


# Reading takes half a second, and every stage of a run asks. Threads share none: to pad changes a tokenizer.
@lru_cache(maxsize=4)
def _read_tokenizer(folder: Path, _stamps: tuple[tuple[str, int, int], ...], _thread: int) -> PreTrainedTokenizerBase:
    return _tokenizer_class(folder).from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _tokenizer_class(folder: Path) -> Any:
    """What reads the tokenizer of a folder: AutoTokenizer, or at once the class that it would choose.

    AutoTokenizer imports what generates text, and scikit-learn with it: 10 s, before a new run reads its first volume.
    """
    with suppress(
        OSError, ValueError, AttributeError, KeyError, TypeError
    ):  # of which AutoTokenizer says what is wrong
        model = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        if (model["model_type"], tokenizer["tokenizer_class"]) == READ_BY_BACKEND and "auto_map" not in tokenizer:
            from transformers.tokenization_utils_tokenizers import TokenizersBackend

            return TokenizersBackend
    from transformers import AutoTokenizer

    return AutoTokenizer


def read_normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of the three channels in `preprocessor_config.json`; None where it does not say.

    Raises WeightsError where the file is damaged, or the numbers are not three each with positive deviations.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        mean = tuple(map(float, config["image_mean"]))
        std = tuple(map(float, config["image_std"]))
    except KeyError:
        return None
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path}: is damaged ({error}); get the model again") from error
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise WeightsError(
            f"{path}: image_mean and image_std must be three numbers each, image_std positive; get the model again"
        )
    return mean, std

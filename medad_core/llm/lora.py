"""LoRA adapters: low-rank changes of an LLM's weights, in PEFT's layout.

One decision: an adapter is merged into a copy of the LLM in the cache, once: W + (alpha / r) · B A, computed in float32
and rounded to the type that W is stored in. Both engines and training then load a plain model, so they cannot differ in
how they apply an adapter, and no token costs more. PEFT itself merges only into a model that is loaded whole; here one
file of weights is in memory at a time. Source: Hu et al. 2021, section 4.1.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from medad_core.errors import WeightsError, in_one_line
from medad_core.models.cache import RECORD, ConvertedModel, cache_root, sha256_of, write_converted
from medad_core.models.loading import open_tensors
from medad_core.models.resolve import weight_files

log = logging.getLogger(__name__)
CONFIG = "adapter_config.json"
MODEL = "adapter_model.safetensors"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
PREFIX = "base_model.model."
LICENCE = "that of the model and of the adapter"
# What PEFT can do beside plain LoRA, and would change what is merged.
UNSUPPORTED = (
    "use_dora",
    "use_rslora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "layer_replication",
    "use_qalora",
    "alora_invocation_tokens",
)
# Other ways to begin (PiSSA, OLoRA, …) change the model first, so that their adapter fits the changed model only.
PLAIN_BEGINNINGS = (True, False, "gaussian", None)


@dataclass(frozen=True)
class _Scale:
    """The rank r and alpha of an adapter's configuration."""

    rank: int
    alpha: float


def save_lora(folder: Path, tensors: dict[str, Tensor], alpha: float) -> None:
    """Write an adapter into `folder`; `tensors` are named as in PEFT (`base_model.model.…q_proj.lora_A.weight`).

    Raises WeightsError where the matrices have several ranks.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name}
    if len(ranks) != 1:
        raise WeightsError(f"{folder}: its matrices have ranks {sorted(ranks)}; an adapter's scale is of one rank")
    targets = sorted({name.split(".lora_")[0].rsplit(".", 1)[1] for name in tensors})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "bias": "none",
        "r": ranks.pop(),
        "lora_alpha": alpha,
        "target_modules": targets,
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / MODEL)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def lora_sha256(folder: Path) -> str:
    """Hash of all that determines an adapter.

    Raises WeightsError where one of its files is missing, or where it is more than plain LoRA.
    """
    _check_files(folder)
    _read_scale(folder)
    return _sha256(f"{sha256_of(folder / CONFIG)} {sha256_of(folder / MODEL)}")


def merged(llm: Path, lora: Path) -> Path:
    """The cached folder of an LLM with an adapter merged into it, made on first use.

    Raises WeightsError where the two do not fit, or the cache cannot be written.
    """
    weights = weight_files(llm)
    check_lora(llm, lora)
    others = sorted(file for file in llm.iterdir() if _is_kept(file))
    hashes = [sha256_of(file) for file in (*weights, *others)]
    source = _sha256(" ".join([*hashes, lora_sha256(lora)]))
    folder = cache_root() / f"{llm.name}-lora-{source[:12]}"
    if folder.is_dir():
        return folder
    log.info("merging %s into a copy of %s, once", lora, llm.name)
    folder.parent.mkdir(parents=True, exist_ok=True)

    def write(scratch: Path) -> None:
        for file in others:
            shutil.copyfile(file, scratch / file.name)
        _merge(weights, lora, scratch)

    try:
        write_converted(ConvertedModel(folder.name, folder, str(lora), source, LICENCE, {}), write)
    except OSError as error:
        if not folder.is_dir():  # otherwise another process was faster
            raise WeightsError(
                f"llm.lora: cannot merge {lora} into a copy of {llm.name}: {error}; "
                f"the cache {folder.parent} needs as much room as the model"
            ) from error
    return folder


def check_lora(llm: Path, lora: Path) -> None:
    """Raise WeightsError where an adapter changes tensors that an LLM lacks, or adds a matrix of another shape.

    Of the LLM only headers are read.
    """
    rank = _read_scale(lora).rank
    shapes = _shapes(llm)
    for name, (down, up) in _read_pairs(lora).items():
        if len(down) != rank:
            raise WeightsError(
                f"llm.lora: {lora / CONFIG} says rank {rank}, its matrix for {name} has {len(down)}; "
                "the two files do not belong together"
            )
        if shapes.get(name) != (up.shape[0], down.shape[1]) or up.shape[1] != down.shape[0]:
            product = f"{up.shape[0]} × {up.shape[1]} · {down.shape[0]} × {down.shape[1]}"
            raise WeightsError(
                f"llm.lora: {lora} adds {product} to {name}, which is {shapes.get(name, 'absent')} in {llm.name}; "
                "it was made for another model"
            )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_kept(file: Path) -> bool:
    """Whether a file of the LLM goes into the merged copy as it is."""
    return file.is_file() and file.suffix not in WEIGHTS and file.name != RECORD


def _merge(weights: list[Path], lora: Path, out: Path) -> None:
    """Write every file of weights with what the adapter adds to it."""
    from safetensors.torch import load_file, save_file

    pairs = _read_pairs(lora)
    scale = _read_scale(lora)
    factor = scale.alpha / scale.rank
    for file in weights:
        state = load_file(file)
        for name in state.keys() & pairs.keys():
            down, up = pairs[name]
            changed = state[name].float() + factor * (up.float() @ down.float())
            state[name] = changed.to(state[name].dtype)
        save_file(state, out / file.name, metadata={"format": "pt"})


def _shapes(llm: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name to shape, from headers."""
    shapes = {}
    for file in weight_files(llm):
        with open_tensors(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                shapes[name] = tuple(tensors.get_slice(name).get_shape())
    return shapes


def _read_pairs(lora: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Name of the weight that is changed → (A (r, in), B (out, r))."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(lora / MODEL).items()}
    except SafetensorError as error:
        raise WeightsError(
            f"llm.lora: {lora / MODEL} cannot be read ({error}); the file is damaged, get it again"
        ) from error
    if odd := [name for name, tensor in tensors.items() if tensor.dim() != 2]:
        raise WeightsError(f"llm.lora: {lora / MODEL} holds what is no matrix: {', '.join(sorted(odd)[:4])}")
    names = {name.split(".lora_")[0] for name in tensors}
    expected = {f"{name}.lora_{half}.weight" for name in names for half in "AB"}
    if odd := sorted(expected ^ set(tensors)):
        raise WeightsError(f"llm.lora: {lora} holds more or less than pairs of lora_A and lora_B: {', '.join(odd[:4])}")
    return {f"{name}.weight": (tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]) for name in names}


def _check_files(lora: Path) -> None:
    for name in (CONFIG, MODEL):
        if not (lora / name).is_file():
            raise WeightsError(
                f"llm.lora: {lora} holds no {name}; name a folder of a LoRA adapter as PEFT saves it, in safetensors"
            )


def _read_scale(lora: Path) -> _Scale:
    """Raises WeightsError for a configuration that is damaged, or of more than plain LoRA."""
    try:
        config = json.loads((lora / CONFIG).read_text(encoding="utf-8"))
        scale = _Scale(int(config["r"]), float(config["lora_alpha"]))
        odd = [key for key in UNSUPPORTED if config.get(key)]
        beginning = config.get("init_lora_weights")
        if beginning not in PLAIN_BEGINNINGS:
            odd.append(f"init_lora_weights {beginning}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"llm.lora: {lora / CONFIG} is damaged ({in_one_line(error)}); get the adapter again"
        ) from error
    if scale.rank < 1:
        raise WeightsError(f"llm.lora: {lora / CONFIG}: r is {scale.rank}; an adapter has a rank of at least 1")
    if config.get("peft_type") != "LORA" or odd:
        raise WeightsError(
            f"llm.lora: {lora} is no plain LoRA adapter ({', '.join(odd) or config.get('peft_type')}); "
            "merge it with PEFT and name the merged model as llm.model"
        )
    return scale

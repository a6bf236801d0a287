"""Weights of a trained decoder and converter, and for which models they were made.

One decision: a weights folder says what it fits (encoder, text encoder, sentences, LLM, by hash); loading it beside anything
else is refused before any work, naming what differs. `strict` loading only, safetensors only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from medad_core.errors import WeightsError
from medad_core.models.cache import sha256_of
from medad_core.models.converter import Converter
from medad_core.models.decoder import Decoder

LABELS = ("encoder", "text_encoder", "llm")  # names people use; hashes decide what fits
DECODER, CONVERTER = "decoder.safetensors", "converter.safetensors"


def weights_folder(source: str) -> Path:
    """The folder of the project's own weights (`embedded`) or the one that is named. Raises WeightsError when incomplete."""
    folder = Path(str(files("medad_core.models") / "embedded")) if source == "embedded" else Path(source)
    for file in (DECODER, CONVERTER):
        if not (folder / file).is_file():
            raise WeightsError(f"models.weights: {folder} holds no {file}; name a folder that `medad train` wrote, or 'embedded'")
    return folder


def check_fit(path: Path, present: Mapping[str, str]) -> None:
    """Raise WeightsError where weights were made for other models than those present, naming every one; reads the header only."""
    with _opened(path) as tensors:
        fits = (tensors.metadata() or {}).get("fits")
    if fits is None:
        raise WeightsError(f"{path}: does not say what models it was made for, so it is not of `medad train`")
    wrong = [f"{name} is {present.get(name, 'absent')}, made for {made}" for name, made in json.loads(fits).items() if present.get(name) != made]
    if wrong:
        raise WeightsError(f"{path}: weights of another model: {'; '.join(wrong)}; choose the models they were made for, or train new ones with `medad train`")


def trained_on(folder: Path) -> frozenset[str]:
    """Case ids that the card of a weights folder names; empty where there is no card."""
    card = folder / "card.json"
    return frozenset(json.loads(card.read_text())["cases"]) if card.is_file() else frozenset()


def save_decoder(decoder: Decoder, folder: Path, fits: Mapping[str, str]) -> None:
    _save(decoder.state_dict(), folder / DECODER, fits)


def save_converter(converter: Converter, folder: Path, fits: Mapping[str, str]) -> None:
    _save(converter.state_dict(), folder / CONVERTER, fits)


def load_decoder(folder: Path, present: Mapping[str, str]) -> Decoder:
    """The decoder of a weights folder; `present` are the fingerprints of the encoder and texts it will meet."""
    state = _load(folder / DECODER, present)
    taps = sum(name.endswith("weight") for name in state)
    width = state["projections.0.weight"].shape[1] if taps else 0
    return _strict(lambda: Decoder(taps, width, state["text"]), state, folder / DECODER)


def load_converter(folder: Path, present: Mapping[str, str]) -> Converter:
    """The converter of a weights folder; `present` are the fingerprints of the LLM and texts it will meet."""
    state = _load(folder / CONVERTER, present)
    return _strict(lambda: Converter(state["knowledge"], state["positions"].shape[1], 1.0), state, folder / CONVERTER)


def weights_fingerprint(folder: Path, file: str) -> dict[str, str]:
    """`{"decoder_sha256": …}` or `{"converter_sha256": …}`."""
    return {f"{file.split('.')[0]}_sha256": sha256_of(folder / file)}


def _save(state: Mapping[str, torch.Tensor], path: Path, fits: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    fits = {name: value for name, value in fits.items() if name not in LABELS}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, scratch, metadata={"fits": json.dumps(fits, sort_keys=True)})
    scratch.replace(path)


def _load(path: Path, present: Mapping[str, str]) -> dict[str, torch.Tensor]:
    check_fit(path, present)
    with _opened(path) as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (a safetensors handle is no mapping)


def _opened(path: Path):
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}); the file is damaged or no safetensors, get it again") from error


def _strict(build, state: Mapping[str, torch.Tensor], path: Path):
    try:
        module = build()
        module.load_state_dict(state, strict=True)
    except (KeyError, RuntimeError) as error:
        raise WeightsError(f"{path}: its tensors are not those of this architecture ({str(error).splitlines()[-1].strip()})") from error
    return module.eval().requires_grad_(False)

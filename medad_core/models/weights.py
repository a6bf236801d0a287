"""Weights of a trained decoder and converter, and for which models they were made.

One decision: a weights folder says what it fits (encoder, text encoder, sentences, LLM, by hash); loading it beside
anything else is refused before any work, naming what differs. Loading is `strict`, and from safetensors only. A
converter also says its architecture and its template; one that does not is `compact` and `chat`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import torch
from safetensors.torch import save_file

from medad_core.data.names import patient_of
from medad_core.errors import WeightsError, first_line
from medad_core.models.cache import sha256_of
from medad_core.models.converter import ARCHITECTURES, AnomalyGPTConverter, Converter
from medad_core.models.decoder import Decoder
from medad_core.models.fetched import local_folder
from medad_core.models.loading import open_tensors, require_finite
from medad_core.models.view import ALONE, View
from medad_core.store.files import make_folder, new_file

AnyConverter = Converter | AnomalyGPTConverter
Module = TypeVar("Module", bound=torch.nn.Module)
Value = TypeVar("Value")
Temperature = Annotated[float, msgspec.Meta(gt=0, lt=1000)]
LABELS = ("encoder", "text_encoder", "llm")  # names for people; hashes decide what fits
DECODER = "decoder.safetensors"
CONVERTER = "converter.safetensors"
PRESENCE_ALONE = ("presence",)  # what converters know that do not say it
MASKS = "masks"  # what `medad train` learns from


def weights_folder(source: str) -> Path:
    """The folder of the project's own weights (`embedded`) or the one that is named.

    Raises WeightsError where it is incomplete, or its card is damaged.
    """
    embedded = Path(str(files("medad_core.models") / "embedded"))
    folder = embedded if source == "embedded" else local_folder(source, "models.weights")
    for file in (DECODER, CONVERTER):
        if not (folder / file).is_file():
            raise WeightsError(
                f"models.weights: {folder} holds no {file}; name a folder that `medad train` wrote, or 'embedded'"
            )
    trained_on(folder)  # the page needs the card, when all work is done
    return folder


def check_fit(path: Path, present: Mapping[str, str]) -> None:
    """Raise WeightsError where weights were made for other models than those present, naming every one.

    `present` maps fields of fingerprints to their values; of the file only the header is read.
    """
    with open_tensors(path) as tensors:
        fits = (tensors.metadata() or {}).get("fits")
    if fits is None:
        raise WeightsError(f"{path}: does not say what models it was made for, so it is not of `medad train`")
    try:
        wanted = dict(json.loads(fits))
    except (ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"{path}: what it says of its models is damaged; get the file again") from error
    wrong = [
        f"{name} is {present.get(name, 'absent')}, made for {made}"
        for name, made in wanted.items()
        if present.get(name) != made
    ]
    if wrong:
        raise WeightsError(
            f"{path}: weights of another model: {'; '.join(wrong)}; "
            "choose the models they were made for, or train new ones with `medad train`"
        )


def trained_on(folder: Path) -> frozenset[str]:
    """Patients that the card of a weights folder names; empty where there is no card.

    Cards of earlier versions name cases only, whose ids say the patient. Raises WeightsError for a damaged card.
    """
    card = _read_card(folder)
    return frozenset() if card is None else frozenset([*card.patients, *map(patient_of, card.cases)])


def _read_card(folder: Path) -> _Card | None:
    path = folder / "card.json"
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Card)
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise WeightsError(
            f"{path}: does not say whom the weights were trained on ({first_line(error)}); get the folder again"
        ) from error


def supervision_of(folder: Path) -> str:
    """What the weights of a folder have learned from, as their card says; "not stated" where there is none.

    Cards of earlier versions do not say it: `medad train` learns from masks. Raises as `trained_on` does.
    """
    card = _read_card(folder)
    if card is None:
        return "not stated"
    return card.supervision or ("not stated" if card.imported else MASKS)


def limits_of(folder: Path) -> str:
    """What a reader of results must know first, as the card of a weights folder says; "" where it says nothing.

    Raises as `trained_on` does.
    """
    card = _read_card(folder)
    return "" if card is None else " ".join(card.limits.split())


def right_share(folder: Path, family: str) -> float | None:
    """The share of slices whose value the card says to be right for a family of questions; None where it says nothing.

    Raises as `trained_on` does.
    """
    card = _read_card(folder)
    return None if card is None else card.scores.questions.get(family, _Right()).right


class _Right(msgspec.Struct):
    right: float | None = None


class _Scores(msgspec.Struct):
    questions: dict[str, _Right] = {}


class _Card(msgspec.Struct):
    """What is needed of a card."""

    cases: list[str]
    patients: list[str] = []
    supervision: str | None = None
    imported: str | None = None
    limits: str = ""
    scores: _Scores = msgspec.field(default_factory=_Scores)


def save_decoder(decoder: Decoder, folder: Path, fits: Mapping[str, str], view: View = ALONE) -> None:
    """Write a decoder as a weights folder's; `fits` are the fingerprints of the models it was trained with.

    `view` is what the encoder saw of a slice.
    """
    _save(decoder.state_dict(), folder / DECODER, fits, **view.facts)


def decoder_view(folder: Path) -> View:
    """The view of `save_decoder`; only the header is read. Raises WeightsError where it is damaged."""
    path = folder / DECODER
    with open_tensors(path) as tensors:
        texts = tensors.metadata() or {}
    try:
        return View.read(texts)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}; get the file again") from error


def save_converter(
    converter: AnyConverter,
    path: Path,
    fits: Mapping[str, str],
    template: str,
    questions: Sequence[str] = PRESENCE_ALONE,
    temperature: float = 1.0,
) -> None:
    """Write a converter to a file, or as a weights folder's.

    `template` is the one whose prompts it was trained in, `questions` are the families that it has learned,
    `temperature` is that of p(yes) (medad_core.llm.temperature).
    """
    facts = {"architecture": converter.architecture, "template": template}
    if tuple(questions) != PRESENCE_ALONE:
        facts["questions"] = json.dumps(list(questions))
    if temperature != 1.0:
        facts["temperature"] = repr(temperature)
    _save(converter.state_dict(), _converter_file(path), fits, **facts)


@dataclass(frozen=True)
class ConverterFacts:
    """What a converter file says of itself.

    `joint` is the width of the image embedding it takes, None where it takes none. `questions` are the families that it
    has learned, `temperature` is that of p(yes).
    """

    architecture: str
    template: str
    joint: int | None
    questions: tuple[str, ...] = PRESENCE_ALONE
    temperature: float = 1.0


def converter_facts(path: Path) -> ConverterFacts:
    """What a converter file, or a weights folder's, says of itself; only its header is read.

    Raises WeightsError where it is damaged or of an unknown architecture.
    """
    path = _converter_file(path)
    with open_tensors(path) as tensors:
        metadata = tensors.metadata() or {}
        takes_image = "image.weight" in set(tensors.keys())
        joint = tensors.get_slice("image.weight").get_shape()[1] if takes_image else None
    architecture = metadata.get("architecture", Converter.architecture)
    if architecture not in ARCHITECTURES:
        raise WeightsError(
            f"{path}: converter of architecture {architecture!r}; known here: {', '.join(ARCHITECTURES)}"
        )
    questions = _said(path, metadata, "questions", tuple[str, ...], PRESENCE_ALONE)
    temperature = _said(path, metadata, "temperature", Temperature, 1.0)
    return ConverterFacts(architecture, metadata.get("template", "chat"), joint, questions, temperature)


def _said(path: Path, metadata: Mapping[str, str], name: str, kind: type[Value], otherwise: Value) -> Value:
    """What a file says in JSON of something; `otherwise` where it does not."""
    if name not in metadata:
        return otherwise
    try:
        return msgspec.json.decode(metadata[name], type=kind)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise WeightsError(f"{path}: what it says of its {name} is damaged; get the file again") from error


def load_decoder(folder: Path, present: Mapping[str, str]) -> Decoder:
    """The decoder of a weights folder; `present` are the fingerprints of encoder and texts.

    Raises WeightsError where it was made for others, or the file is damaged.
    """
    state = _load(folder / DECODER, present)
    taps = sum(name.endswith("weight") for name in state)

    def build() -> Decoder:
        width = state["projections.0.weight"].shape[1] if taps else 0
        return Decoder(taps, width, state["text"])

    return _strict(build, state, folder / DECODER)


def load_converter(path: Path, present: Mapping[str, str]) -> AnyConverter:
    """The converter of a file or weights folder; `present` are the fingerprints of LLM and texts.

    Raises WeightsError where it was made for others, or the file is damaged.
    """
    path = _converter_file(path)
    state = _load(path, present)
    kind = ARCHITECTURES[converter_facts(path).architecture]
    return _strict(lambda: kind.of_state(state), state, path)


def _converter_file(path: Path) -> Path:
    return path if path.suffix == ".safetensors" else path / CONVERTER


def weights_fingerprint(folder: Path, file: str) -> dict[str, str]:
    """`{"decoder_sha256": …}` or `{"converter_sha256": …}`."""
    return {f"{file.split('.', maxsplit=1)[0]}_sha256": sha256_of(folder / file)}


def _save(state: Mapping[str, torch.Tensor], path: Path, fits: Mapping[str, str], **facts: str) -> None:
    make_folder(str(path.parent))
    fits = {name: value for name, value in fits.items() if name not in LABELS}
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    with new_file(str(path)) as scratch:
        save_file(tensors, scratch, metadata={"fits": json.dumps(fits, sort_keys=True), **facts})


def _load(path: Path, present: Mapping[str, str]) -> dict[str, torch.Tensor]:
    check_fit(path, present)
    with open_tensors(path) as tensors:
        state = {name: tensors.get_tensor(name) for name in sorted(tensors.keys())}
    require_finite(state.items(), path)
    return state


def _strict(build: Callable[[], Module], state: Mapping[str, torch.Tensor], path: Path) -> Module:
    """The module that `build` makes, frozen, with exactly the tensors of `state`."""
    try:
        module = build()
        module.load_state_dict(state, strict=True)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: its tensors are not those of this architecture ({_last_line(error)})") from error
    return module.eval().requires_grad_(False)


def _last_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[-1].strip()

"""AnomalyGPT checkpoints (Gu et al. 2023) become a weights folder like that of `medad train`.

One decision: a checkpoint is read tensor by tensor into our own modules, and a name that is missing, unknown or of
another size is an error that lists them all: nothing is loaded half. AnomalyGPT saves what it trained (decoder and
prompt learner) and takes the image's projection and the LLM's LoRA from PandaGPT's delta. So several files are read in
that order, and later ones overrule. Names, sizes and the prompt follow AnomalyGPT's paper and the layout of its
checkpoints; no line of it is used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from medad_core.config import ModelSettings
from medad_core.errors import WeightsError
from medad_core.imports.anomalygpt_layout import TAPS, Checkpoint, expected_shapes, is_used, sort_tensors, their_name
from medad_core.imports.checkpoint import read_state
from medad_core.imports.folder import check_new, write_new
from medad_core.llm.engine import llm_fingerprint, llm_folder
from medad_core.llm.lora import check_lora, save_lora
from medad_core.media import markdown_text
from medad_core.models.cache import ConvertedModel, sha256_of
from medad_core.models.converter import AnomalyGPTConverter
from medad_core.models.decoder import Decoder
from medad_core.models.encoder import NO_JOINT, encoder_fingerprint, encoder_width, joint_width
from medad_core.models.loading import read_config
from medad_core.models.resolve import LOCAL
from medad_core.models.text import Sentences, load_text_encoder, text_encoder_fingerprint, text_features
from medad_core.models.weights import save_converter, save_decoder

STATES = (
    ("{}", "flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect", "{} without damage"),
    ("damaged {}", "broken {}", "{} with flaw", "{} with defect", "{} with damage"),
)
PHOTOS = ("a photo of a {}.", "a photo of the {}.")
LICENCE = "that of the checkpoint; AnomalyGPT's own is CC BY-NC-SA 4.0"
LONGEST = 40  # tokens of an answer


@dataclass(frozen=True)
class Fitting:
    """The models that a checkpoint was trained on, by name or folder, and where presets are looked for."""

    encoder: str
    text_encoder: str
    llm: str
    where: ModelSettings


@dataclass(frozen=True)
class Imported:
    """The weights folder, and the settings (`key=value`) that a run needs to use it."""

    folder: Path
    settings: tuple[str, ...]


def ensemble(thing: str) -> Sentences:
    """AnomalyGPT's prompt ensembles for a thing: 7 normal and 5 abnormal states in 2 templates.

    AnomalyGPT has no knowledge sentences, and a converter of its architecture asks for none.
    """
    normal, abnormal = (_photos(states, thing) for states in STATES)
    return Sentences(normal=normal, abnormal=abnormal, knowledge=("none",))


def import_anomalygpt(
    checkpoints: Sequence[Path],
    out: Path,
    *,
    encoder: str,
    text_encoder: str,
    llm: str,
    thing: str = "object",
    lora_alpha: float = 32.0,
    where: ModelSettings = LOCAL,
) -> Imported:
    """Write decoder, converter, LoRA adapter (where there is one) and card to `out`, complete or not at all.

    `encoder`, `text_encoder` and `llm` are names or folders as in the settings, and presets are looked for as `where`
    says. `thing` is the noun of the sentences (AnomalyGPT trains with "object"). `lora_alpha` is not in a checkpoint.
    Raises WeightsError where a file is damaged or holds more than tensors, where tensors are missing, unknown or of
    another size than those of the models named, and UsageError where `out` exists already.
    """
    check_new(out)
    models = Fitting(encoder, text_encoder, llm, where)
    state: dict[str, Tensor] = {}
    for path in checkpoints:
        state |= _read(path)
    tensors = sort_tensors(state)
    texts = load_text_encoder(text_encoder, where=where)
    _check_widths(tensors, models, texts.width)
    decoder = Decoder(TAPS, encoder_width(encoder, where=where), text_features(texts, ensemble(thing)))
    decoder.load_state_dict({**tensors.decoder, "text": decoder.text}, strict=True)
    converter = AnomalyGPTConverter.of_state(tensors.converter)
    converter.load_state_dict(tensors.converter, strict=True)

    def write(folder: Path) -> None:
        adapter = folder / "lora" if tensors.lora else None
        if adapter is not None:
            save_lora(adapter, tensors.lora, lora_alpha)
            check_lora(llm_folder(llm, where=where), adapter)
        _write_card(folder, checkpoints, models, thing, adapter)
        _save(folder, decoder, converter, models, adapter)

    sources = " ".join(path.name for path in checkpoints)
    hashes = " ".join(sha256_of(path) for path in checkpoints)
    write_new(ConvertedModel("anomalygpt", out, sources, hashes, LICENCE, {}), write)
    return Imported(out, _settings(out, models, bool(tensors.lora)))


def _photos(states: Sequence[str], thing: str) -> tuple[str, ...]:
    """Every state of a thing in every template."""
    return tuple(photo.format(state.format(thing)) for state in states for photo in PHOTOS)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of one file that are used, float32.

    Raises as `read_state` does, and WeightsError where a number is not finite.
    """
    state = read_state(path, "a checkpoint of AnomalyGPT, or the delta of PandaGPT")
    used = {name: tensor.detach().float() for name, tensor in state.items() if is_used(name)}
    endless = [name for name, tensor in used.items() if not tensor.isfinite().all()]
    if endless:
        raise WeightsError(
            f"{path}: not finite: {', '.join(endless[:8])}; the file is damaged, or its training went wrong"
        )
    return used


def _check_widths(tensors: Checkpoint, models: Fitting, text_width: int) -> None:
    """Raise WeightsError where sizes are not those of the models, or disagree among themselves, naming every one."""
    joint = joint_width(models.encoder, where=models.where)
    features = encoder_width(models.encoder, where=models.where)
    width = read_config(llm_folder(models.llm, where=models.where)).get_text_config().hidden_size
    if joint is None:
        raise WeightsError(NO_JOINT.format(name=models.encoder))
    expected = expected_shapes(features, text_width, width, joint)
    shapes = expected.decoder | expected.converter
    wrong = [
        f"{their_name(name)} is {tuple(tensor.shape)}, not {tuple(shapes[name])}"
        for name, tensor in (tensors.decoder | tensors.converter).items()
        if tensor.shape != shapes[name]
    ]
    if wrong:
        raise WeightsError(
            f"the checkpoint does not fit encoder {models.encoder} ({features} wide, joint space {joint}), "
            f"text encoder ({text_width}) and LLM {models.llm} ({width}): {'; '.join(wrong)}"
        )


def _save(
    folder: Path, decoder: Decoder, converter: AnomalyGPTConverter, models: Fitting, adapter: Path | None
) -> None:
    """Write decoder and converter with the fingerprints of the models that they fit.

    A checkpoint knows nothing of intensity scaling or of the project's sentences, so it cannot refuse any.
    """
    shared = text_encoder_fingerprint(models.text_encoder, where=models.where)
    lora = None if adapter is None else str(adapter)
    save_decoder(decoder, folder, {**encoder_fingerprint(models.encoder, where=models.where), **shared})
    llm = llm_fingerprint(models.llm, lora, where=models.where)
    save_converter(converter, folder, {**llm, **shared}, "anomalygpt")


def _settings(out: Path, models: Fitting, lora: bool) -> tuple[str, ...]:
    """The settings of a run with the imported weights.

    AnomalyGPT's sentences of two places are longer than those of one, for which the default length of answers is meant.
    """
    settings = [f"models.folder={models.where.folder}"] if models.where.folder else []
    settings += [
        f"llm.max_new_tokens={LONGEST}",
        f"models.weights={out}",
        f"models.encoder={models.encoder}",
        f"models.text_encoder={models.text_encoder}",
        f"llm.model={models.llm}",
    ]
    if lora:
        settings.append(f"llm.lora={out / 'lora'}")
    return tuple(settings)


def _write_card(out: Path, checkpoints: Sequence[Path], models: Fitting, thing: str, adapter: Path | None) -> None:
    """card.json and card.md: where the weights come from, and what is not known of them."""
    sources = {path.name: sha256_of(path) for path in checkpoints}
    # `cases` are those that `medad train` trained on; of a checkpoint nobody knows, so no leak can be reported.
    card = {"cases": [], "imported": "AnomalyGPT", "sources": sources, "sentences": ensemble(thing).model_dump()}
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    names = [markdown_text(Path(name).name) for name in (models.encoder, models.text_encoder, models.llm)]
    lora = ", with the LoRA adapter in `lora/`" if adapter else ""
    lines = [
        "# Decoder and converter of an AnomalyGPT checkpoint",
        "",
        "For research. Not a medical device.",
        "",
        f"Imported for encoder {names[0]}, text encoder {names[1]} and LLM {names[2]}{lora}, from",
        "",
        *(f"* {markdown_text(name)}, sha256 {digest}" for name, digest in sources.items()),
        "",
        "* What they were trained on is not known here, so no run can warn of cases it was trained on. "
        f"Licence: {LICENCE}.",
        f'* The text features are those of its own prompt ensembles about "{markdown_text(thing)}": '
        f"{len(STATES[0])} normal and {len(STATES[1])} abnormal states in {len(PHOTOS)} templates.",
        "* How its pictures were scaled is not known either; `data.scaling` is free, and changes what it sees.",
    ]
    (out / "card.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

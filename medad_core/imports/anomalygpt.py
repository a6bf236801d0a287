"""AnomalyGPT checkpoints (Gu et al. 2023) become a weights folder like that of `medad train`.

One decision: a checkpoint is read tensor by tensor into our own modules, and a name that is missing, unknown or of another size is an
error that lists them all: nothing is loaded half. AnomalyGPT saves what it trained (decoder and prompt learner) and takes the
image's projection and the LLM's LoRA from PandaGPT's delta, so several files are read in that order, later ones overruling.
Names, sizes and the prompt follow AnomalyGPT's paper and the layout of its checkpoints; no line of it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medad_core.config import ModelSettings
from medad_core.errors import WeightsError
from medad_core.imports.checkpoint import read_state
from medad_core.imports.folder import check_new, write_new
from medad_core.llm.engine import llm_fingerprint, llm_folder
from medad_core.llm.lora import check_lora, save_lora
from medad_core.models.cache import ConvertedModel, sha256_of
from medad_core.models.converter import AnomalyGPTConverter
from medad_core.models.decoder import Decoder
from medad_core.models.encoder import NO_JOINT, encoder_fingerprint, encoder_width, joint_width
from medad_core.models.loading import read_config
from medad_core.models.resolve import LOCAL
from medad_core.models.text import Sentences, load_text_encoder, text_encoder_fingerprint, text_features
from medad_core.models.weights import save_converter, save_decoder

# Prefix in a checkpoint → prefix in our decoder or converter; the first that fits counts. The convolutions have the same numbers.
DECODER_NAMES = {"image_decoder.fc.": "projections."}
CONVERTER_NAMES = {
    "prompt_learner.base_prompts": "base",
    "prompt_learner.meta_net.15.": "to_width.",
    "prompt_learner.meta_net.": "convolutions.",
    "llama_proj.": "image.",
}
# Frozen models that a checkpoint may carry; the ones named at import are used.
FROZEN = ("visual_encoder.", "llama_model.")
STATES = (
    ("{}", "flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect", "{} without damage"),
    ("damaged {}", "broken {}", "{} with flaw", "{} with defect", "{} with damage"),
)
LICENCE = "that of the checkpoint; AnomalyGPT's own is CC BY-NC-SA 4.0"
LONGEST = 40  # tokens of an answer
PHOTOS = ("a photo of a {}.", "a photo of the {}.")


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
    words: tuple[str, ...]


def ensemble(thing: str) -> Sentences:
    """AnomalyGPT's prompt ensembles for a thing: 7 normal and 5 abnormal states in 2 templates. It has no knowledge sentences; the project's are not asked."""
    normal, abnormal = (
        tuple(photo.format(state.format(thing)) for state in states for photo in PHOTOS) for states in STATES
    )
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
    """Write decoder, converter, LoRA adapter (where there is one) and card to `out`, which appears complete or not at all.

    `encoder`, `text_encoder` and `llm` are names or folders as in the settings, presets looked for as `where` says; `thing` is what its
    sentences speak of (AnomalyGPT trains with "object"); `lora_alpha` is not in a checkpoint. Raises WeightsError where a file is damaged
    or more than tensors, where tensors are missing, unknown or of another size than the models named, and UsageError where `out` is
    there already.
    """
    check_new(out)
    state: dict[str, Tensor] = {}
    for checkpoint in checkpoints:
        state |= _read(checkpoint)
    texts, models = load_text_encoder(text_encoder, where=where), Fitting(encoder, text_encoder, llm, where)
    decoder_state, converter_state, lora = _sort(state)
    _check_widths(decoder_state, converter_state, models, texts.width)

    decoder = Decoder(4, encoder_width(encoder, where=where), text_features(texts, ensemble(thing)))
    decoder.load_state_dict({**decoder_state, "text": decoder.text}, strict=True)
    converter = AnomalyGPTConverter.of_state(converter_state)
    converter.load_state_dict(converter_state, strict=True)
    # A checkpoint knows nothing of intensity scaling or of the project's sentences, so it cannot refuse any.
    shared = text_encoder_fingerprint(text_encoder, where=where)

    def write(folder: Path) -> None:
        adapter = folder / "lora" if lora else None
        if adapter is not None:
            save_lora(adapter, lora, lora_alpha)
            check_lora(llm_folder(llm, where=where), adapter)
        _write_card(folder, checkpoints, models, thing, adapter)
        save_decoder(decoder, folder, {**encoder_fingerprint(encoder, where=where), **shared})
        save_converter(
            converter, folder, {**llm_fingerprint(llm, adapter and str(adapter), where=where), **shared}, "anomalygpt"
        )

    names, hashes = (
        " ".join(words) for words in zip(*((path.name, sha256_of(path)) for path in checkpoints), strict=True)
    )
    write_new(ConvertedModel("anomalygpt", out, names, hashes, LICENCE, {}), write)
    found = (f"models.folder={where.folder}",) if where.folder else ()
    # Its sentences of two places are longer than those of one, for which the default is meant.
    words = (
        *found,
        f"llm.max_new_tokens={LONGEST}",
        f"models.weights={out}",
        f"models.encoder={encoder}",
        f"models.text_encoder={text_encoder}",
        f"llm.model={llm}",
    )
    return Imported(out, words if not lora else (*words, f"llm.lora={out / 'lora'}"))


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, float32; what is frozen and not used is left out. Raises as `read_state` does, and where a number is not finite."""
    state = read_state(path, "a checkpoint of AnomalyGPT, or the delta of PandaGPT")
    used = {
        name: tensor.detach().float()
        for name, tensor in state.items()
        if ".lora_" in name or not name.startswith(FROZEN)
    }
    endless = [name for name, tensor in used.items() if not tensor.isfinite().all()]
    if endless:
        raise WeightsError(
            f"{path}: not finite: {', '.join(endless[:8])}; the file is damaged, or its training went wrong"
        )
    return used


def _sort(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of our decoder, of our converter, and of the LoRA adapter, under their names there. Raises WeightsError listing what is missing or unknown."""
    decoder, converter, lora, unknown = {}, {}, {}, []
    for name, tensor in state.items():
        if ".lora_" in name and name.startswith("llama_model."):
            lora[name.removeprefix("llama_model.").replace(".default.", ".")] = tensor
        elif (ours := _renamed(name, DECODER_NAMES)) is not None:
            decoder[ours] = tensor
        elif (ours := _renamed(name, CONVERTER_NAMES)) is not None:
            converter[ours] = tensor
        else:
            unknown.append(name)
    with torch.device("meta"):
        wanted = {"decoder": Decoder(4, 1, torch.empty(2, 1)), "converter": AnomalyGPTConverter(1, 1)}
    missing = []
    for given, names, module in (
        (decoder, DECODER_NAMES, wanted["decoder"]),
        (converter, CONVERTER_NAMES, wanted["converter"]),
    ):
        expected = {name for name in module.state_dict() if name != "text"}
        missing += [_original(name, names) for name in sorted(expected - given.keys())]
        unknown += [_original(name, names) for name in sorted(given.keys() - expected)]
    if missing or unknown:
        hint = (
            "; llama_proj is in PandaGPT's delta, which AnomalyGPT starts from: name that file first"
            if any(name.startswith("llama_proj") for name in missing)
            else ""
        )
        said = "; ".join(
            f"{what}: {', '.join(names)}" for what, names in (("missing", missing), ("unexpected", unknown)) if names
        )
        raise WeightsError(f"not the tensors of an AnomalyGPT checkpoint: {said}{hint}")
    return decoder, converter, lora


def _renamed(name: str, names: Mapping[str, str]) -> str | None:
    return next((ours + name.removeprefix(theirs) for theirs, ours in names.items() if name.startswith(theirs)), None)


def _original(name: str, names: Mapping[str, str]) -> str:
    return next(theirs + name.removeprefix(ours) for theirs, ours in names.items() if name.startswith(ours))


def _check_widths(
    decoder: Mapping[str, Tensor], converter: Mapping[str, Tensor], models: Fitting, text_width: int
) -> None:
    """Raise WeightsError where sizes are not those of the models named, or do not agree among themselves, naming every one."""
    joint, features = joint_width(models.encoder, where=models.where), encoder_width(models.encoder, where=models.where)
    width = read_config(llm_folder(models.llm, where=models.where)).get_text_config().hidden_size
    if joint is None:
        raise WeightsError(NO_JOINT.format(name=models.encoder))
    with torch.device("meta"):
        fitting = (
            Decoder(4, features, torch.empty(2, text_width)).state_dict()
            | AnomalyGPTConverter(width, joint).state_dict()
        )
    names = DECODER_NAMES | CONVERTER_NAMES
    wrong = [
        f"{_original(name, names)} is {tuple(tensor.shape)}, not {tuple(fitting[name].shape)}"
        for name, tensor in {**decoder, **converter}.items()
        if tensor.shape != fitting[name].shape
    ]
    if wrong:
        made_for = f"encoder {models.encoder} ({features} wide, joint space {joint}), text encoder ({text_width}) and LLM {models.llm} ({width})"
        raise WeightsError(f"the checkpoint does not fit {made_for}: {'; '.join(wrong)}")


def _write_card(out: Path, checkpoints: Sequence[Path], models: Fitting, thing: str, adapter: Path | None) -> None:
    """card.json and card.md: where the weights come from, and what is not known of them."""
    sources = {path.name: sha256_of(path) for path in checkpoints}
    # `cases` is what `medad train` knows of its data; of a checkpoint nobody knows, so no leak can be reported.
    (out / "card.json").write_text(
        json.dumps(
            {"cases": [], "imported": "AnomalyGPT", "sources": sources, "sentences": ensemble(thing).model_dump()},
            indent=2,
        )
        + "\n"
    )
    files = "\n".join(f"* `{name}`, sha256 {digest}" for name, digest in sources.items())
    (out / "card.md").write_text(f"""# Decoder and converter of an AnomalyGPT checkpoint

For research. Not a medical device.

Imported for encoder {Path(models.encoder).name}, text encoder {Path(models.text_encoder).name} and LLM {Path(models.llm).name}{", with the LoRA adapter in `lora/`" if adapter else ""}, from

{files}

* What they were trained on is not known here, so no run can warn of cases it was trained on. Licence: {LICENCE}.
* The text features are those of its own prompt ensembles about "{thing}": {len(STATES[0])} normal and {len(STATES[1])} abnormal states in {len(PHOTOS)} templates.
* How its pictures were scaled is not known either; `data.scaling` is free, and changes what it sees.
""")

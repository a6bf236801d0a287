"""The proposed scheme on one fold: its decoder and converters.

One decision: they are kept under `DIR/_work/fold-{f}-seed-{s}`, because several rows share them, and training them is
most of the work.
"""

from __future__ import annotations

from pathlib import Path

from medad_core.config import Settings
from medad_core.errors import MedadError, WeightsError
from medad_core.llm.engine import llm_folder
from medad_core.llm.prompt import Prompt
from medad_core.models.device import device_of, settle_torch
from medad_core.models.memory import free_memory
from medad_core.models.text import load_sentences, load_text_encoder, text_features
from medad_core.models.weights import AnyConverter, load_converter, save_converter
from medad_core.progress import ReportProgress
from medad_core.reproduce.experiment import open_experiment
from medad_core.reproduce.units import Unit
from medad_core.training.decoder import train_decoder
from medad_core.training.fitting import (
    ConverterData,
    Grids,
    check_kinds,
    cross_fit,
    decode_all,
    fit_converter,
    labelled,
    load_grids,
    save_grids,
)
from medad_core.training.folds import deal_folds
from medad_core.training.loop import arithmetic_of


def fit_decoder(out: str, fold: int, seed: int, settings: Settings, progress: ReportProgress = lambda *_: None) -> None:
    """Grids of every case of a fold: those to train on by cross-fitting, the others by a decoder of all of those."""
    work = _work(out, fold, seed)
    if (work / "grids.npz").is_file():
        return
    settle_torch(settings)
    experiment = open_experiment(out)
    cases = experiment.load(out)
    dealt = experiment.folds[fold]
    train = [cases[name] for name in dealt.train]
    others = [cases[name] for name in (*dealt.validation, *dealt.test)]
    check_kinds(train, (), "to train on")
    seeded = settings.train.model_copy(update={"seed": seed})
    inner = deal_folds(train, seeded.folds, settings.data.first_slice, settings.data.last_slice, seed)
    for number, held_out in enumerate(inner):
        check_kinds(train, held_out, f"inner fold {number}")
    text = text_features(load_text_encoder(settings.models.text_encoder, where=settings.models), load_sentences())
    arithmetic = arithmetic_of(seeded, device_of(settings))
    fitted = cross_fit(train, inner, text, seeded, work, arithmetic, lambda done, _: progress(done, len(inner) + 1))
    decoder = train_decoder(
        train, text, seeded.decoder, seed, work / "decoder.pt", arithmetic=arithmetic, until=fitted.steps
    )
    save_grids(work / "grids.npz", fitted.grids | decode_all(decoder, others))
    (work / "decoder.pt").unlink()
    progress(len(inner) + 1, len(inner) + 1)


def grids_of(out: str, fold: int, seed: int) -> Grids:
    """Grids (N, taps, gh, gw) float16 of every case of a fold. Raises MedadError where the decoder was not trained."""
    path = _work(out, fold, seed) / "grids.npz"
    if not path.is_file():
        raise MedadError(f"there is no decoder of fold {fold}, seed {seed}; its own failure says why")
    return load_grids(path)


def fit_tokens(out: str, unit: Unit, settings: Settings, progress: ReportProgress = lambda *_: None) -> None:
    """Train the converter of a row `proposed` or `without-knowledge` and keep it."""
    path = _converter_path(out, unit)
    if path.is_file():
        return
    from medad_core.llm.transformers_engine import load_llm

    settle_torch(settings)
    experiment = open_experiment(out)
    cases = experiment.load(out)
    dealt = experiment.folds[unit.fold]
    grids = grids_of(out, unit.fold, unit.seed)
    train = [cases[name] for name in dealt.train]
    validation = [cases[name] for name in dealt.validation]
    check_kinds(validation, (), "to validate on")
    folder = llm_folder(settings.llm.model, settings.llm.lora, where=settings.models)
    prompt = Prompt(folder, settings.llm.template)
    encoder = load_text_encoder(settings.models.text_encoder, where=settings.models)
    knowledge = encoder.encode(load_sentences().knowledge)[: None if unit.row == "proposed" else 0]
    seeded = settings.train.model_copy(update={"seed": unit.seed})
    checkpoint = path.with_suffix(".pt")
    arithmetic = arithmetic_of(seeded, device_of(settings))
    free_memory()
    llm = load_llm(prompt.folder, arithmetic.dtype).to(arithmetic.device)
    converter, _ = fit_converter(
        ConverterData(knowledge, labelled(train, grids), labelled(validation, grids)),
        prompt,
        llm,
        seeded,
        checkpoint,
        arithmetic,
        progress,
    )
    save_converter(converter, path, {}, prompt.template.name)
    checkpoint.unlink()


def load_tokens(out: str, unit: Unit) -> AnyConverter:
    """The converter that `fit_tokens` kept. Raises MedadError where there is none."""
    path = _converter_path(out, unit)
    if not path.is_file():
        raise MedadError(f"there is no converter of {unit}; its own failure says why")
    try:
        return load_converter(path, {})
    except WeightsError as error:
        path.unlink()
        raise MedadError(f"{path} was damaged ({error}) and has been removed; run the same command again") from error


def _work(out: str, fold: int, seed: int) -> Path:
    folder = Path(out) / "_work" / f"fold-{fold}-seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _converter_path(out: str, unit: Unit) -> Path:
    return _work(out, unit.fold, unit.seed) / f"{unit.row}.safetensors"

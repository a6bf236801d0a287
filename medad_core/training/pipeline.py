"""`medad train`: labelled cases in, a decoder, a converter and a card out.

One decision: cross-fitting. Patients are held out fold by fold, so every map the converter learns from, and every score
on the card, is of a patient that the decoder which drew it has not seen; the decoder that is kept is then trained on
all of them. The converter never sees the patients of fold 0: they choose its checkpoint and give its scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medad_core.config import Settings
from medad_core.data.cases import Rejection
from medad_core.data.own_folders import claim_folder
from medad_core.errors import MedadError
from medad_core.llm.engine import llm_fingerprint, llm_folder
from medad_core.llm.prompt import Prompt
from medad_core.llm.questions import words_sha256
from medad_core.llm.transformers_engine import load_llm
from medad_core.models.device import device_of, settle_torch
from medad_core.models.encoder import Encoder, load_encoder
from medad_core.models.memory import free_memory
from medad_core.models.text import load_sentences, load_text_encoder, text_features
from medad_core.models.weights import AnyConverter, save_converter, save_decoder
from medad_core.permissions import set_mode
from medad_core.progress import ReportStep
from medad_core.run.fingerprints import shared_fingerprint
from medad_core.run.gather import by_index, find_cohort
from medad_core.store.files import write_text
from medad_core.training.card import (
    Speaker,
    cross_validated_scores,
    find_temperature,
    may_be_asked,
    question_scores,
    speak,
    verdict_scores,
    write_card,
)
from medad_core.training.decoder import train_decoder
from medad_core.training.features import TrainingCase, encode_cohort, view_to_train
from medad_core.training.fitting import (
    ConverterData,
    CrossFit,
    Grids,
    check_kinds,
    cross_fit,
    fit_converter,
    labelled,
)
from medad_core.training.folds import deal_folds
from medad_core.training.loop import Arithmetic, arithmetic_of

Folds = list[list[str]]


@dataclass(frozen=True)
class TrainingResult:
    """The folder of the weights, the cases that were left out, and the card's scores."""

    folder: Path
    rejected: tuple[Rejection, ...]
    scores: dict[str, dict]


def train(
    data: str | Path,
    out: str | Path,
    settings: Settings,
    progress: ReportStep = lambda *_: None,
    licence: str = "not stated",
    limits: str = "",
) -> TrainingResult:
    """Train on the labelled cases below `data`, write weights and card to `out`; resumes where a killed run stopped.

    The split `test` is left out unless the settings say otherwise. `licence` is that of the data, for the card, and
    `limits` what a reader of results must know first. Raises MedadError, before any training, where a fold held out
    leaves fewer than one case or only one kind of slice.
    """
    set_mode(settings.store.mode)
    training = _begin(Path(data), Path(out), settings, progress)
    fitted = _fit_decoder(training)
    free_memory()  # the LLM needs it
    prompt = Prompt(llm_folder(settings.llm.model, settings.llm.lora, where=settings.models), settings.llm.template)
    llm = load_llm(prompt.folder, training.arithmetic.dtype).to(training.arithmetic.device)
    converter, curve = _fit_converter(training, fitted.grids, prompt, llm)
    speaker = Speaker(fitted.grids, converter, prompt, llm, settings)
    spoken = speak(speaker, training.held_out)
    temperature = find_temperature(spoken)
    scores = {
        "decoder": cross_validated_scores(training.cases, fitted.grids, settings),
        "converter": verdict_scores(spoken, temperature, settings),
        "converter_wide": verdict_scores(spoken, temperature, settings, wide=True),
        "questions": question_scores(speaker, training.held_out),
    }
    asked = may_be_asked(scores["questions"], settings.train.converter.least_right)
    _write_converter(training, converter, prompt, asked, temperature)
    write_card(training.out, settings, training.cases, training.folds, scores, curve, fitted.steps, (licence, limits))
    return TrainingResult(training.out, training.rejected, scores)


@dataclass(frozen=True)
class _Training:
    """What both fits share.

    `text` (2, text width) and `knowledge` (K, text width) are encoded sentences. `work` is the folder of checkpoints of
    these very cases, folds and settings.
    """

    settings: Settings
    text: Tensor
    knowledge: Tensor
    encoder_fingerprint: dict[str, str]
    cases: list[TrainingCase]
    rejected: tuple[Rejection, ...]
    folds: Folds
    out: Path
    work: Path
    arithmetic: Arithmetic
    progress: ReportStep

    @property
    def held_out(self) -> list[TrainingCase]:
        """The cases that the converter does not learn from."""
        return [case for case in self.cases if case.case_id in self.folds[0]]

    @property
    def learned_from(self) -> list[TrainingCase]:
        """The cases that the converter learns from."""
        return [case for case in self.cases if case.case_id not in self.folds[0]]


def _begin(data: Path, out: Path, settings: Settings, progress: ReportStep) -> _Training:
    """Encode sentences and cases, and deal the folds."""
    claim_folder(data, str(out))
    settle_torch(settings)
    torch.manual_seed(settings.train.seed)
    arithmetic = arithmetic_of(settings.train, device_of(settings))
    pixels = settings.train.image_pixels
    encoder = load_encoder(settings.models.encoder, arithmetic.device, image_size=pixels, where=settings.models)
    text_encoder = load_text_encoder(settings.models.text_encoder, where=settings.models)
    sentences = load_sentences()
    text = text_features(text_encoder, sentences)
    cases, rejected = _encode_cases(data, out, settings, encoder, progress)
    folds = deal_folds(
        cases, settings.train.folds, settings.data.first_slice, settings.data.last_slice, settings.train.seed
    )
    _check_folds(cases, folds, settings)
    work = out / "_work" / _work_key(settings, cases, folds, encoder.fingerprint)
    work.mkdir(parents=True, exist_ok=True)
    return _Training(
        settings=settings,
        text=text,
        knowledge=text_encoder.encode(sentences.knowledge),
        encoder_fingerprint=encoder.fingerprint,
        cases=cases,
        rejected=tuple(rejected),
        folds=folds,
        out=out,
        work=work,
        arithmetic=arithmetic,
        progress=progress,
    )


def _encode_cases(
    data: Path, out: Path, settings: Settings, encoder: Encoder, progress: ReportStep
) -> tuple[list[TrainingCase], list[Rejection]]:
    """Encode the cases that may be trained on; the others come back with their reason.

    Raises MedadError where there are not two cases, or not both kinds of slice.
    """
    cohort = find_cohort(data, by_index(settings.data))
    held_out_split = "test" if settings.train.hold_out_test else None
    members = [member for member in cohort.members if member.rejected or member.split != held_out_split]
    folder = out / "_work" / "features"
    cases, rejected = encode_cohort(
        cohort, members, settings, encoder, folder, lambda done, of: progress("encode", done, of)
    )
    flags = np.concatenate([case.has_tumour for case in cases]) if cases else np.zeros(0, bool)
    if len(cases) < 2 or flags.all() or not flags.any():
        raise MedadError(
            f"{data}: {len(cases)} usable labelled cases with {int(flags.sum())} tumour and "
            f"{int((~flags).sum())} tumour-free slices; training needs two cases and both kinds"
        )
    return cases, rejected


def _fit_decoder(training: _Training) -> CrossFit:
    """Train decoders by cross-fitting, then write one that is trained on all cases."""
    settings = training.settings
    fitted = cross_fit(
        training.cases,
        training.folds,
        training.text,
        settings.train,
        training.work,
        training.arithmetic,
        lambda done, of: training.progress("decoder folds", done, of),
    )
    decoder = train_decoder(
        training.cases,
        training.text,
        settings.train.decoder,
        settings.train.seed,
        training.work / "decoder.pt",
        arithmetic=training.arithmetic,
        until=fitted.steps,
    )
    fits = {**training.encoder_fingerprint, **shared_fingerprint(settings)}
    save_decoder(decoder.cpu(), training.out, fits, view_to_train(settings.train))
    return fitted


def _fit_converter(
    training: _Training, grids: Grids, prompt: Prompt, llm: torch.nn.Module
) -> tuple[AnyConverter, list[dict[str, float]]]:
    """Train the converter; its loss curve is written, and given too."""
    settings = training.settings
    learn = labelled(training.learned_from, grids)
    validation = labelled(training.held_out, grids)
    converter, curve = fit_converter(
        ConverterData(training.knowledge, learn, validation),
        prompt,
        llm,
        settings.train,
        training.work / "converter.pt",
        training.arithmetic,
        lambda done, of: training.progress("converter", done, of),
    )
    write_text(str(training.out / "converter_loss.csv"), pd.DataFrame(curve).to_csv(index=False))
    return converter, curve


def _write_converter(
    training: _Training, converter: AnyConverter, prompt: Prompt, questions: Sequence[str], temperature: float
) -> None:
    settings = training.settings
    fingerprint = llm_fingerprint(settings.llm.model, settings.llm.lora, where=settings.models)
    fits = {**fingerprint, **shared_fingerprint(settings)}
    save_converter(converter, training.out, fits, prompt.template.name, questions, temperature)


def _check_folds(cases: Sequence[TrainingCase], folds: Folds, settings: Settings) -> None:
    """Raise MedadError where a fold held out leaves one kind of slice only, or no slice could be scored."""
    for number, held_out in enumerate(folds):
        check_kinds(cases, held_out, f"fold {number}")
    if not any(len(case.within(settings.data.first_slice, settings.data.last_slice)) for case in cases):
        raise MedadError(
            "train.first_slice..train.last_slice holds no slice of data.first_slice..data.last_slice, "
            "so nothing could be scored; let them overlap"
        )


def _work_key(
    settings: Settings, cases: Sequence[TrainingCase], folds: Folds, encoder_fingerprint: dict[str, str]
) -> str:
    """A name for checkpoints: another one for other settings, cases, folds or models."""
    facts = [
        settings.train.model_dump_json(),
        folds,
        sorted(encoder_fingerprint.items()),
        sorted(shared_fingerprint(settings).items()),
        sorted(llm_fingerprint(settings.llm.model, settings.llm.lora, where=settings.models).items()),
        settings.llm.template,
        words_sha256(settings.train.converter.questions),
    ]
    for case in cases:
        masks = hashlib.sha256(case.masks.tobytes()).hexdigest()
        facts.append((case.case_id, Path(case.features.filename).name, masks))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

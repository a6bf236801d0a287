"""`medad train`: labelled cases in, a decoder, a converter and a card out.

One decision: cross-fitting. Patients are held out fold by fold, so every map the converter learns from, and every score on the
card, is of a patient that the decoder which drew it has not seen; the decoder that is kept is then trained on all of them.
The converter never sees the patients of fold 0: they choose its checkpoint and give its scores.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from medad_core.config import Settings
from medad_core.data.cases import Rejection
from medad_core.errors import MedadError
from medad_core.llm.engine import llm_fingerprint, llm_folder
from medad_core.llm.prompt import Prompt
from medad_core.llm.transformers_engine import load_llm
from medad_core.models.device import device_of, settle_torch
from medad_core.models.encoder import Encoder, load_encoder
from medad_core.models.memory import free_memory
from medad_core.models.text import load_sentences, load_text_encoder, text_features
from medad_core.models.weights import save_converter, save_decoder
from medad_core.run.cohort import find_cohort
from medad_core.run.fingerprints import shared_fingerprint
from medad_core.training.card import cross_validated_scores, verdict_scores, write_card
from medad_core.training.decoder import train_decoder
from medad_core.training.features import TrainingCase, encode_cohort
from medad_core.training.fitting import check_kinds, cross_fit, fit_converter, labelled
from medad_core.training.folds import deal_folds
from medad_core.training.loop import arithmetic_of

log = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TrainingResult:
    """Where the weights are, what was left out, and the card's scores."""

    folder: Path
    rejected: tuple[Rejection, ...]
    scores: dict[str, dict]


def train(
    data: str | Path,
    out: str | Path,
    settings: Settings,
    progress: Progress = lambda *_: None,
    licence: str = "not stated",
) -> TrainingResult:
    """Train on the labelled cases below `data` (without the split `test` unless told otherwise), write weights and card to `out`; resumes where a killed run stopped.

    Raises MedadError, before any training, where a fold held out leaves fewer than one case or only one kind of slice.
    """
    out = Path(out)
    settle_torch(settings)
    torch.manual_seed(settings.train.seed)
    arithmetic = arithmetic_of(settings.train, device_of(settings))
    encoder, sentences, text_encoder = (
        load_encoder(settings.models.encoder, arithmetic.device, where=settings.models),
        load_sentences(),
        load_text_encoder(settings.models.text_encoder, where=settings.models),
    )
    text = text_features(text_encoder, sentences)
    cases, rejected = _encode_all(data, out, settings, encoder, progress)
    folds = deal_folds(
        cases, settings.train.folds, settings.data.first_slice, settings.data.last_slice, settings.train.seed
    )
    _check_folds(cases, folds, settings)
    work = out / "_work" / _work_key(settings, cases, folds, encoder.fingerprint)
    work.mkdir(parents=True, exist_ok=True)

    fitted = cross_fit(
        cases, folds, text, settings.train, work, arithmetic, lambda done, of: progress("decoder folds", done, of)
    )
    grids, shared = fitted.grids, shared_fingerprint(settings)
    decoder = train_decoder(
        cases,
        text,
        settings.train.decoder,
        settings.train.seed,
        work / "decoder.pt",
        arithmetic=arithmetic,
        until=fitted.steps,
    )
    save_decoder(decoder.cpu(), out, {**encoder.fingerprint, **shared})
    del encoder, decoder
    free_memory()  # the LLM needs it

    prompt = Prompt(llm_folder(settings.llm.model, settings.llm.lora, where=settings.models), settings.llm.template)
    llm, knowledge = (
        load_llm(prompt.folder, arithmetic.dtype).to(arithmetic.device),
        text_encoder.encode(sentences.knowledge),
    )
    held_out = [case for case in cases if case.case_id in folds[0]]
    learn = labelled([case for case in cases if case.case_id not in folds[0]], grids)
    converter, curve = fit_converter(
        knowledge,
        learn,
        labelled(held_out, grids),
        prompt,
        llm,
        settings.train,
        work / "converter.pt",
        arithmetic,
        lambda done, of: progress("converter", done, of),
    )
    save_converter(
        converter,
        out,
        {**llm_fingerprint(settings.llm.model, settings.llm.lora, where=settings.models), **shared},
        prompt.template.name,
    )
    pd.DataFrame(curve).to_csv(out / "converter_loss.csv", index=False)

    scores = {
        "decoder": cross_validated_scores(cases, grids, settings),
        "converter": verdict_scores(held_out, grids, converter, prompt, llm, settings),
    }
    write_card(out, settings, cases, folds, scores, curve, fitted.steps, licence)
    return TrainingResult(out, rejected, scores)


def _encode_all(
    data: str | Path, out: Path, settings: Settings, encoder: Encoder, progress: Progress
) -> tuple[list[TrainingCase], tuple[Rejection, ...]]:
    cohort = find_cohort(data, settings.data)
    chosen = [
        member
        for member in cohort.members
        if member.rejected or not (settings.train.hold_out_test and member.split == "test")
    ]
    cases, rejected = encode_cohort(
        cohort, chosen, settings, encoder, out / "_work" / "features", lambda done, of: progress("encode", done, of)
    )
    flags = np.concatenate([case.has_tumour for case in cases]) if cases else np.zeros(0, bool)
    if len(cases) < 2 or flags.all() or not flags.any():
        raise MedadError(
            f"{data}: {len(cases)} usable labelled cases with {int(flags.sum())} tumour and {int((~flags).sum())} tumour-free slices; training needs two cases and both kinds"
        )
    return cases, tuple(rejected)


def _check_folds(cases: Sequence[TrainingCase], folds: list[list[str]], settings: Settings) -> None:
    """Raise MedadError before any training where a fold held out leaves nothing to learn one kind of slice from, or nothing to score."""
    for number, held_out in enumerate(folds):
        check_kinds(cases, held_out, f"fold {number}")
    if not any(len(case.within(settings.data.first_slice, settings.data.last_slice)) for case in cases):
        raise MedadError(
            "train.first_slice..train.last_slice holds no slice of data.first_slice..data.last_slice, so nothing could be scored; let them overlap"
        )


def _work_key(
    settings: Settings, cases: Sequence[TrainingCase], folds: list[list[str]], encoder: dict[str, str]
) -> str:
    facts = [
        settings.train.model_dump_json(),
        folds,
        sorted(encoder.items()),
        sorted(shared_fingerprint(settings).items()),
        sorted(llm_fingerprint(settings.llm.model, settings.llm.lora, where=settings.models).items()),
        settings.llm.template,
    ]
    facts += [
        (case.case_id, Path(case.features.filename).name, hashlib.sha256(case.masks.tobytes()).hexdigest())
        for case in cases
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

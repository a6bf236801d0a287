"""The two fits that `medad train` and `medad reproduce` share: maps of unseen patients, and a converter that learns from them.

One decision: nobody trains a converter on maps of patients that their decoder has seen; such maps are too good, and the
converter would believe every faint one of a new patient to be healthy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medad_core.config.train import TrainSettings
from medad_core.errors import MedadError
from medad_core.llm.prompt import Prompt
from medad_core.models.converter import new_converter
from medad_core.models.decoder import Decoder
from medad_core.models.weights import AnyConverter
from medad_core.training.converter import ConverterTrainer, thin_out
from medad_core.training.decoder import decode_case, train_decoder
from medad_core.training.features import TrainingCase
from medad_core.training.maps import LabelledMaps, label_maps

log = logging.getLogger(__name__)
Grids = dict[str, np.ndarray]


def cross_fit(cases: Sequence[TrainingCase], folds: Sequence[Sequence[str]], text: Tensor, settings: TrainSettings, work: Path, progress: Callable[[int, int], None]) -> Grids:
    """Grids of every case (case_id to (N, taps, gh, gw) float16), drawn by a decoder trained without its fold; resumes from `work`."""
    grids: Grids = {}
    for number, held_out in enumerate(folds):
        path = work / f"fold-{number}.npz"
        if not path.is_file():
            decoder = train_decoder([case for case in cases if case.case_id not in held_out], text, settings.decoder, settings.seed + 1 + number)
            save_grids(path, decode_all(decoder, [case for case in cases if case.case_id in held_out]))
        grids |= load_grids(path)
        log.info("fold %d of %d: %s held out", number + 1, len(folds), ", ".join(held_out))
        progress(number + 1, len(folds))
    return grids


def decode_all(decoder: Decoder, cases: Sequence[TrainingCase]) -> Grids:
    """Grids of every case by one decoder."""
    return {case.case_id: decode_case(decoder, case) for case in cases}


def save_grids(path: Path, grids: Grids) -> None:
    """Write grids, complete or not at all."""
    scratch = path.with_suffix(".tmp")
    with scratch.open("wb") as stream:
        np.savez(stream, **grids)
    scratch.replace(path)


def load_grids(path: Path) -> Grids:
    """What `save_grids` wrote."""
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def check_kinds(cases: Sequence[TrainingCase], held_out: Collection[str], name: str) -> None:
    """Raise MedadError where `cases` without those held out (a fold's, by `name`) have slices of one kind only."""
    flags = np.concatenate([case.has_tumour for case in cases if case.case_id not in held_out] or [np.zeros(0, bool)])
    if flags.size == 0 or flags.all() or not flags.any():
        kind = "tumour-free" if flags.any() else "tumour"
        left = f"without {name} ({', '.join(held_out)}) no {kind} slices are left to learn from" if held_out else f"no {kind} slices {name}"
        raise MedadError(f"{left}; add cases with some, or widen train.first_slice..train.last_slice")


def labelled(cases: Sequence[TrainingCase], grids: Grids) -> LabelledMaps:
    """The maps of `cases` with their centroids."""
    return LabelledMaps.join([label_maps(grids[case.case_id], case.masks) for case in cases])


def fit_converter(
    knowledge: Tensor,
    learn: LabelledMaps,
    validation: LabelledMaps,
    prompt: Prompt,
    llm: torch.nn.Module,
    settings: TrainSettings,
    checkpoint: Path,
    progress: Callable[[int, int], None],
) -> tuple[AnyConverter, list[dict[str, float]]]:
    """A converter with the lowest loss on `validation`, and its loss curve; resumes from `checkpoint`. `knowledge` (K, text width) may be empty."""
    torch.manual_seed(settings.seed)
    converter = new_converter(settings.converter.architecture, knowledge, prompt.width, float(prompt.embeddings.std()))
    trainer = ConverterTrainer(converter, llm, prompt, settings.converter, settings.seed)
    few = thin_out(validation, settings.converter.validation_maps, settings.seed)
    return trainer.fit(learn, few, checkpoint, progress), trainer.curve

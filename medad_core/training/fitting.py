"""The two fits that `medad train` and `medad reproduce` share: maps of unseen patients, and a converter for them.

One decision: nobody trains a converter on maps of patients that their decoder has seen. Such maps are too good, and the
converter would take every faint one of a new patient for healthy.
"""

from __future__ import annotations

import json
import logging
import zipfile
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medad_core.config.train import TrainSettings
from medad_core.errors import MedadError
from medad_core.llm.prompt import Prompt
from medad_core.models.converter import new_converter
from medad_core.models.decoder import Decoder, focal_dice_loss
from medad_core.models.weights import AnyConverter
from medad_core.store.files import new_file, write_text
from medad_core.training.converter import ConverterTrainer, thin_out
from medad_core.training.decoder import decode_case, shrink_masks, train_decoder
from medad_core.training.features import TrainingCase
from medad_core.training.loop import Arithmetic
from medad_core.training.maps import LabelledMaps, label_maps

log = logging.getLogger(__name__)
Grids = dict[str, np.ndarray]


@dataclass(frozen=True)
class CrossFit:
    """Grids of every case, drawn by a decoder that was trained without it, and the steps of that decoder.

    `grids` maps case_id to (N, taps, gh, gw) float16.
    """

    grids: Grids
    steps: int


@dataclass(frozen=True)
class ConverterData:
    """What a converter is fitted on.

    `knowledge` (K, text width) are encoded sentences, and may be empty. It learns from the maps `learn`; those of
    `validation` choose its checkpoint.
    """

    knowledge: Tensor
    learn: LabelledMaps
    validation: LabelledMaps


def cross_fit(
    cases: Sequence[TrainingCase],
    folds: Sequence[Sequence[str]],
    text: Tensor,
    settings: TrainSettings,
    work: Path,
    arithmetic: Arithmetic,
    progress: Callable[[int, int], None],
) -> CrossFit:
    """Train a decoder without each fold in turn; resumes from `work`.

    `folds` are case ids; `text` (2, text width) are the encoded sentences. The number of steps is the same for all
    folds: that of the checkpoint with the lowest loss on the patients held out, averaged over folds, or the last
    checkpoint where `train.decoder.choose_steps` is off. A single number, chosen among a few on all patients, hardly
    flatters their maps.
    """
    losses: list[dict[str, float]] = []
    for number, held_out in enumerate(folds):
        path = work / f"fold-{number}.json"
        if not path.is_file():
            write_text(str(path), json.dumps(_fit_fold(cases, number, held_out, text, settings, work, arithmetic)))
            (work / f"fold-{number}.pt").unlink()
        losses.append(json.loads(path.read_text(encoding="utf-8")))
        log.info("fold %d of %d: %s held out", number + 1, len(folds), ", ".join(held_out))
        progress(number + 1, len(folds))
    mean: dict[int, float] = {}
    for checkpoint in losses[0]:
        mean[int(checkpoint)] = float(np.mean([fold[checkpoint] for fold in losses]))
    steps = min(mean, key=mean.__getitem__)
    log.info(
        "decoders take %d of %d steps; held-out loss %s",
        steps,
        settings.decoder.steps,
        ", ".join(f"{loss:.4f} at {at}" for at, loss in mean.items()),
    )
    grids: Grids = {}
    for number in range(len(folds)):
        grids |= load_grids(_fold_grids(work, number, steps))
    return CrossFit(grids, steps)


def _fit_fold(
    cases: Sequence[TrainingCase],
    number: int,
    held_out: Sequence[str],
    text: Tensor,
    settings: TrainSettings,
    work: Path,
    arithmetic: Arithmetic,
) -> dict[str, float]:
    """Train without a fold; keep its grids at every checkpoint that may be chosen, and give the loss of each."""
    unseen = [case for case in cases if case.case_id in held_out]
    losses_at = work / f"fold-{number}.losses.json"
    losses: dict[str, float] = {}
    if losses_at.is_file():  # of the checkpoints before a kill
        losses = json.loads(losses_at.read_text(encoding="utf-8"))

    def validate(steps: int, decoder: Decoder) -> dict[str, float] | None:
        if not settings.decoder.choose_steps and steps < settings.decoder.steps:
            return None
        grids = decode_all(decoder, unseen)
        save_grids(_fold_grids(work, number, steps), grids)
        losses[str(steps)] = held_out_loss(grids, unseen)
        write_text(str(losses_at), json.dumps(losses))
        return {"validation_loss": losses[str(steps)]}

    learn = [case for case in cases if case.case_id not in held_out]
    train_decoder(
        learn,
        text,
        settings.decoder,
        settings.seed + 1 + number,
        work / f"fold-{number}.pt",
        arithmetic=arithmetic,
        validate=validate,
    )
    return losses


def _fold_grids(work: Path, number: int, steps: int) -> Path:
    return work / f"fold-{number}-steps-{steps}.npz"


def held_out_loss(grids: Grids, cases: Sequence[TrainingCase]) -> float:
    """The training loss on all slices of `cases`.

    Tumour slices and tumour-free ones weigh the same where there are both, as in training.
    """
    grid = torch.from_numpy(np.concatenate([grids[case.case_id] for case in cases])).float()
    masks = torch.cat([shrink_masks(case.seen(case.masks)) for case in cases])
    tumour = np.concatenate([case.has_tumour for case in cases])
    kinds = [torch.from_numpy(np.flatnonzero(kind)) for kind in (tumour, ~tumour) if kind.any()]
    return float(np.mean([focal_dice_loss(grid[kind], masks[kind]).item() for kind in kinds]))


def decode_all(decoder: Decoder, cases: Sequence[TrainingCase]) -> Grids:
    """Grids of every case by one decoder."""
    return {case.case_id: decode_case(decoder, case) for case in cases}


def save_grids(path: Path, grids: Grids) -> None:
    """Write grids to a `.npz` file, complete or not at all. Raises StoreError."""
    with new_file(str(path)) as scratch, scratch.open("wb") as stream:
        np.savez(stream, **grids)


def load_grids(path: Path) -> Grids:
    """What `save_grids` wrote.

    A damaged file is removed, so that the next run makes it anew; raises MedadError that says so.
    """
    try:
        with np.load(path) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        path.unlink()
        raise MedadError(f"{path} was damaged ({error}) and has been removed; run the same command again") from error


def check_kinds(cases: Sequence[TrainingCase], held_out: Collection[str], name: str) -> None:
    """Raise MedadError where `cases` without the case ids `held_out` have slices of one kind only.

    `name` is that of the fold held out; where none is, it says what the slices are for.
    """
    flags = np.concatenate([case.has_tumour for case in cases if case.case_id not in held_out] or [np.zeros(0, bool)])
    if flags.size and flags.any() and not flags.all():
        return
    kind = "tumour-free" if flags.any() else "tumour"
    if held_out:
        lack = f"without {name} ({', '.join(held_out)}) no {kind} slices are left to learn from"
    else:
        lack = f"no {kind} slices {name}"
    raise MedadError(f"{lack}; add cases with some, or widen train.first_slice..train.last_slice")


def labelled(cases: Sequence[TrainingCase], grids: Grids) -> LabelledMaps:
    """The maps of `cases` with what their masks say."""
    return LabelledMaps.join([label_maps(grids[case.case_id], case) for case in cases])


def fit_converter(
    data: ConverterData,
    prompt: Prompt,
    llm: torch.nn.Module,
    settings: TrainSettings,
    checkpoint: Path,
    arithmetic: Arithmetic,
    progress: Callable[[int, int], None],
) -> tuple[AnyConverter, list[dict[str, float]]]:
    """The converter with the lowest validation loss, on the CPU, and its loss curve; resumes from `checkpoint`.

    `llm` is the frozen causal LM of `prompt`, on the device of `arithmetic`. `progress` gets the steps done, and of how
    many.
    """
    torch.manual_seed(settings.seed)
    embedding_std = float(prompt.embeddings.std())
    converter = new_converter(settings.converter.architecture, data.knowledge, prompt.width, embedding_std)
    trainer = ConverterTrainer(converter, llm, prompt, settings.converter, settings.seed, arithmetic)
    few = thin_out(data.validation, settings.converter.validation_maps, settings.seed)
    return trainer.fit(data.learn, few, checkpoint, progress).cpu(), trainer.loop.curve

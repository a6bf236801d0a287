"""How each row of the table comes to its scores, but for those that the LLM answers for.

One decision: whatever a row is, it is trained on the same patients and seeds and gives the same frame of scores for
the same validation and test slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from medad_core.config import Settings
from medad_core.errors import MedadError
from medad_core.models.device import device_of, settle_torch
from medad_core.models.encoder import load_encoder
from medad_core.progress import ReportProgress
from medad_core.reproduce.experiment import Experiment, open_experiment
from medad_core.reproduce.proposed import grids_of
from medad_core.reproduce.schema import PROPOSED
from medad_core.reproduce.scoring import Collector, decoder_maps, frame_of, scored_slices
from medad_core.reproduce.slices import Slices, tumour_free
from medad_core.reproduce.units import ScoredUnit, Unit, failure_of, read_unit, write_unit
from medad_core.training.features import TrainingCase


@dataclass(frozen=True)
class _Work:
    """What a unit is made from: the experiment in the folder `out` and its cases."""

    out: str
    unit: Unit
    settings: Settings
    experiment: Experiment
    cases: dict[str, TrainingCase]
    progress: ReportProgress

    @property
    def train(self) -> list[TrainingCase]:
        return [self.cases[name] for name in self.experiment.folds[self.unit.fold].train]

    @property
    def slices(self) -> Slices:
        """Validation and test slices."""
        return scored_slices(self.experiment, self.unit.fold, self.cases, self.settings)

    def collected(self, collected: Collector) -> ScoredUnit:
        """A unit of collected scores and maps."""
        frame = frame_of(self.experiment, self.unit.fold, collected.slices, np.array(collected.scores))
        return collected.scored(frame, self.experiment, self.settings.reproduce.gallery)


def run_unit(out: str, unit: Unit, settings: Settings, progress: ReportProgress = lambda *_: None) -> None:
    """Score a unit that needs no answers of the LLM, and keep it. Raises MedadError where it cannot be done."""
    settle_torch(settings)
    experiment = open_experiment(out)
    work = _Work(out, unit, settings, experiment, experiment.load(out), progress)
    makers = {"majority": _majority, "without-llm": _without_llm, "shuffled": _shuffled}
    make = makers.get(unit.row, _detector)
    write_unit(out, unit, make(work))


def _detector(work: _Work) -> ScoredUnit:
    """A baseline, fitted on the tumour-free training slices."""
    from medad_core.baselines import build

    settings = work.settings
    device = device_of(settings)
    encoder = load_encoder(
        settings.models.encoder, device, image_size=settings.train.image_pixels, where=settings.models
    )
    detector = build(work.unit.row, settings.reproduce.baselines, encoder, work.unit.seed, device)
    detector.fit(Slices.of(work.train, tumour_free), work.progress)
    collected = Collector(work.slices)
    for batch in detector.score(collected.slices):
        for score, square in zip(batch.scores, batch.maps, strict=True):
            collected.add(score, collected.slices.to_native(len(collected.scores), square))
    return replace(work.collected(collected), training_error=detector.training_error)


def _majority(work: _Work) -> ScoredUnit:
    """Always the training patients' share of tumour slices, within the screening range."""
    data = work.settings.data
    flags = [case.has_tumour[case.within(data.first_slice, data.last_slice)] for case in work.train]
    if not flags:
        raise MedadError("no patients to train on")
    slices = work.slices
    scores = np.full(len(slices), np.concatenate(flags).mean())
    return ScoredUnit(frame_of(work.experiment, work.unit.fold, slices, scores), {}, {})


def _without_llm(work: _Work) -> ScoredUnit:
    """The map's own score."""
    grids = grids_of(work.out, work.unit.fold, work.unit.seed)
    return work.collected(decoder_maps(work.slices, grids, work.settings))


def _shuffled(work: _Work) -> ScoredUnit:
    """The proposed scheme with every slice given the map tokens of another slice, drawn by the seed.

    The other slice is of a case of the same kind, patient or phantom. Greedy answers depend on nothing but the prompt,
    and a shuffled prompt is another slice's prompt. So its answer is the answer that the other slice was given, and no
    LLM has to speak again.
    """
    source = Unit(PROPOSED, work.unit.fold, work.unit.seed)
    missing = failure_of(work.out, source)
    if missing:
        raise MedadError(f"the proposed scheme has no answers to shuffle: {missing}")
    answered = read_unit(work.out, source).frame
    groups = answered["case_id"].map(work.experiment.group_of) + "/" + answered["split"]
    order = np.arange(len(answered))
    rng = np.random.default_rng([work.unit.seed, work.unit.fold])
    for rows in answered.groupby(groups, sort=True).indices.values():
        order[rows] = derangement(rows, rng)
    moved = ("score", "map_score", "answer", "answer_parsed", "verdict", "location")
    return ScoredUnit(answered.assign(**{column: answered[column].to_numpy()[order] for column in moved}), {}, {})


def derangement(rows: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """The same rows in an order in which none keeps its place (of one row: itself): a random cycle."""
    cycle = rng.permutation(np.asarray(rows))
    place = {row: cycle[(at + 1) % len(cycle)] for at, row in enumerate(cycle)}
    return np.array([place[row] for row in rows])

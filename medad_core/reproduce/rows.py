"""How each row of the table comes to its scores.

One decision: whatever a row is, it is trained on the same patients and seeds and gives the same frame of scores for
the same validation and test slices. Nothing here knows a test label other than to write it beside the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from medad_core.config import Settings
from medad_core.data.location import true_cell
from medad_core.errors import MedadError
from medad_core.metrics import PixelHistogram
from medad_core.models.decoder import image_scores, render_maps
from medad_core.models.device import device_of, settle_torch
from medad_core.models.encoder import load_encoder
from medad_core.reproduce import proposed
from medad_core.reproduce.experiment import Experiment, open_experiment
from medad_core.reproduce.schema import PROPOSED
from medad_core.reproduce.slices import Slices, to_native, tumour_free
from medad_core.reproduce.units import ReportProgress, ScoredUnit, SliceKey, Unit, failure_of, read_unit, write_unit
from medad_core.training.features import TrainingCase


def run_unit(out: str, unit: Unit, settings: Settings, progress: ReportProgress = lambda *_: None) -> None:
    """Score a unit that needs no answers of the LLM, and keep it. Raises MedadError where it cannot be done."""
    settle_torch(settings)
    experiment = open_experiment(out)
    cases = experiment.load(out)
    makers = {"majority": _majority, "without-llm": _without_llm, "shuffled": _shuffled}
    write_unit(out, unit, makers.get(unit.row, _detector)(out, unit, settings, experiment, cases, progress))


def scored_slices(experiment: Experiment, fold: int, cases: dict[str, TrainingCase], settings: Settings) -> Slices:
    """Validation and test slices of a fold within the screening range, case by case."""
    dealt = experiment.folds[fold]
    return Slices.of(
        (cases[name] for name in (*dealt.validation, *dealt.test)),
        lambda case: case.within(settings.data.first_slice, settings.data.last_slice),
    )


def frame_of(experiment: Experiment, fold: int, slices: Slices, scores: np.ndarray) -> pd.DataFrame:
    """A frame of SCORES without text; `scores` (N,) in the order of `slices`."""
    rows = []
    for (case, position), score in zip(slices.picks, scores, strict=True):
        mask = case.masks[position]
        pixels = int(mask.sum())
        rows.append(
            (
                case.case_id,
                int(case.slice_index[position]),
                experiment.folds[fold].split_of(case.case_id),
                int(pixels > 0),
                pixels * case.pixel_mm2,
                float(score),
                true_cell(mask),
            )
        )
    frame = pd.DataFrame(
        rows, columns=["case_id", "slice_index", "split", "label", "area_mm2", "score", "location_true"]
    )
    return frame.assign(map_score=None, answer=None, answer_parsed=None, verdict=None, location=None)


class Collector:
    """Takes the maps of `slices` in order: counts their pixels, and keeps a thumbnail of each for the gallery."""

    def __init__(self, slices: Slices) -> None:
        self.slices = slices
        self.scores: list[float] = []
        self.histograms: dict[str, PixelHistogram] = {}
        self.thumbnails: dict[SliceKey, np.ndarray] = {}

    def add(self, score: float, anomaly_map: np.ndarray) -> None:
        """Take the score of the next slice, and its map (H, W) float in [0, 1].

        Raises MedadError for a map that is no probability.
        """
        at = len(self.scores)
        case, position = self.slices.picks[at]
        try:
            self.histograms.setdefault(case.case_id, PixelHistogram()).accumulate(anomaly_map, self.slices.mask(at))
        except ValueError as error:
            raise MedadError(f"{case.case_id}, slice {case.slice_index[position]}: {error}") from error
        self.thumbnails[case.case_id, int(case.slice_index[position])] = np.round(255 * anomaly_map[::2, ::2]).astype(
            np.uint8
        )
        self.scores.append(float(score))

    def scored(self, frame: pd.DataFrame, experiment: Experiment, keep: int) -> ScoredUnit:
        """The frame with histograms, and with thumbnails of the worst `keep` test slices of each kind.

        Those are the tumour-free slices of highest score and the tumour slices of lowest.
        """
        test = frame[frame["split"] == "test"].sort_values("score")
        kinds = test.groupby([test["case_id"].map(experiment.group_of), "label"])
        worst = [rows.head(keep) if label else rows.tail(keep) for (_, label), rows in kinds]
        keys = {(row.case_id, row.slice_index) for rows in worst for row in rows.itertuples()}
        return ScoredUnit(frame, self.histograms, {key: self.thumbnails[key] for key in sorted(keys)})


def drawn(slices: Slices, grids: proposed.Grids, settings: Settings) -> Collector:
    """The decoder's maps of `slices`, from grids in half precision as screening keeps them."""
    collected = Collector(slices)
    kind = settings.models.image_score
    for case, position in slices.picks:
        rendered = render_maps(torch.from_numpy(grids[case.case_id][position : position + 1]), *case.masks.shape[1:])
        collected.add(float(image_scores(rendered, kind.kind, kind.quantile)), rendered[0].numpy())
    return collected


def _detector(
    out: str,
    unit: Unit,
    settings: Settings,
    experiment: Experiment,
    cases: dict[str, TrainingCase],
    progress: ReportProgress,
) -> ScoredUnit:
    from medad_core.baselines import build

    device = device_of(settings)
    detector = build(
        unit.row,
        settings.reproduce.baselines,
        load_encoder(settings.models.encoder, device, where=settings.models),
        unit.seed,
        device,
    )
    detector.fit(Slices.of((cases[name] for name in experiment.folds[unit.fold].train), tumour_free), progress)
    slices = scored_slices(experiment, unit.fold, cases, settings)
    collected = Collector(slices)
    for batch in detector.score(slices):
        for score, square in zip(batch.scores, batch.maps, strict=True):
            height, width = slices.mask(len(collected.scores)).shape
            collected.add(score, to_native(square[None], height, width)[0])
    scored = collected.scored(
        frame_of(experiment, unit.fold, slices, np.array(collected.scores)), experiment, settings.reproduce.gallery
    )
    return replace(scored, training_error=detector.training_error)


def _majority(
    out: str,
    unit: Unit,
    settings: Settings,
    experiment: Experiment,
    cases: dict[str, TrainingCase],
    progress: ReportProgress,
) -> ScoredUnit:
    """Always the training patients' share of tumour slices, within the screening range."""
    first, last = settings.data.first_slice, settings.data.last_slice
    flags = [
        case.has_tumour[case.within(first, last)]
        for case in (cases[name] for name in experiment.folds[unit.fold].train)
    ]
    if not flags:
        raise MedadError("no patients to train on")
    slices = scored_slices(experiment, unit.fold, cases, settings)
    return ScoredUnit(
        frame_of(experiment, unit.fold, slices, np.full(len(slices), np.concatenate(flags).mean())), {}, {}
    )


def _without_llm(
    out: str,
    unit: Unit,
    settings: Settings,
    experiment: Experiment,
    cases: dict[str, TrainingCase],
    progress: ReportProgress,
) -> ScoredUnit:
    """The map's own score."""
    slices = scored_slices(experiment, unit.fold, cases, settings)
    collected = drawn(slices, proposed.grids_of(out, unit.fold, unit.seed), settings)
    return collected.scored(
        frame_of(experiment, unit.fold, slices, np.array(collected.scores)), experiment, settings.reproduce.gallery
    )


def _shuffled(
    out: str,
    unit: Unit,
    settings: Settings,
    experiment: Experiment,
    cases: dict[str, TrainingCase],
    progress: ReportProgress,
) -> ScoredUnit:
    """The proposed scheme with every slice given the map tokens of another slice, drawn by the seed.

    The other slice is of a case of the same kind, patient or phantom.
    Greedy answers depend on nothing but the prompt, and a shuffled prompt is another slice's prompt: so its answer is
    the answer that the other slice was given, and no LLM has to speak again.
    """
    source = Unit(PROPOSED, unit.fold, unit.seed)
    missing = failure_of(out, source)
    if missing:
        raise MedadError(f"the proposed scheme has no answers to shuffle: {missing}")
    answered = read_unit(out, source).frame
    groups = answered["case_id"].map(experiment.group_of) + "/" + answered["split"]
    order = np.arange(len(answered))
    rng = np.random.default_rng([unit.seed, unit.fold])
    for _, rows in answered.groupby(groups, sort=True).indices.items():
        order[rows] = derangement(rows, rng)
    moved = ("score", "map_score", "answer", "answer_parsed", "verdict", "location")
    return ScoredUnit(answered.assign(**{column: answered[column].to_numpy()[order] for column in moved}), {}, {})


def derangement(rows: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """The same rows in an order in which none keeps its place (of one row: itself): a random cycle."""
    cycle = rng.permutation(np.asarray(rows))
    place = {row: cycle[(at + 1) % len(cycle)] for at, row in enumerate(cycle)}
    return np.array([place[row] for row in rows])

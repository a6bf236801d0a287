"""Scores and maps of the slices of a fold, as a unit keeps them.

One decision: every row is scored on the same slices in the same order. Nothing here knows a test label other than to
write it beside the score.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from medad_core.config import Settings
from medad_core.data.location import true_cell
from medad_core.errors import MedadError
from medad_core.metrics import PixelHistogram
from medad_core.models.decoder import image_scores
from medad_core.reproduce.experiment import Experiment
from medad_core.reproduce.slices import Slices
from medad_core.reproduce.units import ScoredUnit, SliceKey
from medad_core.training.features import TrainingCase
from medad_core.training.fitting import Grids


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


def decoder_maps(slices: Slices, grids: Grids, settings: Settings) -> Collector:
    """The decoder's maps of `slices`, from grids in half precision as screening keeps them."""
    collected = Collector(slices)
    kind = settings.models.image_score
    for case, position in slices.picks:
        rendered = case.render(grids[case.case_id], position)
        scored = case.scored_map(grids[case.case_id], position)
        collected.add(float(image_scores(scored, kind.kind, kind.quantile)), rendered[0].numpy())
    return collected

"""A learned up-sampler beside bilinear rendering: `python tests/measure_upsampler.py DATA WORK VARIANT…`.

Decoders are trained without each fold of patients in turn, as in `medad train` with configs/train.yaml. An up-sampler
is a small convolutional head: it gets the decoder's map and the pictures of the encoder in 126 × 126, and corrects the
map; `up_sampler.VARIANTS` says what each sees. WORK keeps what is encoded and trained; the same command goes on where
it stopped. It takes about half an hour a variant on one core. Prints tables in Markdown.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from up_sampler import Shown, Trial, begin, fit, refine

from medad_core.config import load_settings
from medad_core.metrics import PixelHistogram
from medad_core.metrics.bootstrap import Estimate, estimate, patient_weights
from medad_core.metrics.comparison import paired_difference
from medad_core.metrics.maps import pixel_statistics, pooled_dice
from medad_core.metrics.ranking import Values, sensitivity_at, weighted_curve
from medad_core.metrics.scores import score_statistics
from medad_core.metrics.statistic import COHORT
from medad_core.metrics.units import Units
from medad_core.models.decoder import image_scores
from medad_core.models.encoder import VisionTransformerEncoder, load_encoder
from medad_core.training.decoder import decode_case
from medad_core.training.features import TrainingCase
from medad_core.training.fitting import Grids, load_grids, save_grids

log = logging.getLogger(__name__)
RANGES = ((60, 100), (20, 130))
SIZES_MM2 = ((50, 200), (200, 400), (400, 800))
REPLICATES = 1000
CHANGES = (("gain", 1.0), ("gain", 0.8), ("gain", 1.2), ("gamma", 0.8), ("gamma", 1.25))
EVERY = 5  # slices, of which one is changed
Heads = dict[str, list[nn.ModuleDict]]  # by variant, one a fold


def main(data: str, work: str, names: Sequence[str]) -> None:
    """Train what is not trained yet, score and print."""
    settings = load_settings(Path(__file__).parent.parent / "configs" / "train.yaml", ["train.hold_out_test=false"])
    place = Path(work)
    place.mkdir(parents=True, exist_ok=True)
    encoder = load_encoder(settings.models.encoder, "cpu", image_size=settings.train.image_pixels)
    trial = begin(data, place, encoder, settings)
    grids: Grids = {}
    for fold in range(len(trial.folds)):
        grids |= trial.grids(fold)
    heads = {name: [fit(trial, name, fold) for fold in range(len(trial.folds))] for name in names}
    for limits in RANGES:
        print_table(trial, trial.own, maps_of(trial, trial.own, grids, heads), limits)
    print_cost(trial, grids, heads, encoder)
    for how, by in CHANGES:
        changed, decoded = change(trial, encoder, how, by)
        print(f"\n{how} {by}, every {EVERY}th slice")
        print_table(trial, changed, maps_of(trial, changed, decoded, heads), RANGES[1])


def maps_of(trial: Trial, cases: Sequence[Shown], grids: Grids, heads: Heads) -> dict[str, Grids]:
    """The maps of each kind, by models that have not seen the patient."""
    maps = {"bilinear": grids}
    for name, modules in heads.items():
        maps[name] = {
            shown.case.case_id: refine(modules[trial.fold_of(shown.case.case_id)], shown, grids[shown.case.case_id])
            for shown in cases
        }
    return maps


@dataclass(frozen=True)
class Scored:
    """Slices by one kind of map: scores (N,), tumours (N,) in mm², patients (N,); a histogram of pixels a patient."""

    score: np.ndarray
    area: np.ndarray
    patient: np.ndarray
    pixels: list[PixelHistogram]

    @classmethod
    def of(cls, cases: Sequence[TrainingCase], grids: Grids, first: int, last: int) -> Scored:
        """Of slices first..last; every case is a patient."""
        rows = []
        pixels = []
        for patient, case in enumerate(cases):
            pixels.append(PixelHistogram())
            for at in case.within(first, last):
                mask = np.asarray(case.masks[at])
                score = image_scores(case.scored_map(grids[case.case_id], at), "quantile", 0.999)
                rows.append((float(score[0]), mask.sum() * case.pixel_mm2, patient))
                pixels[-1].accumulate(case.render(grids[case.case_id], at)[0].numpy(), mask)
        score, area, patients = np.array(rows).T
        return cls(score, area, patients.astype(int), pixels)

    def values(self, folds: np.ndarray) -> dict[str, Values]:
        """The metrics by name, as functions of the weights of patients; `folds` (P,) are those of the patients."""
        units = Units("image", self.patient, np.zeros(len(folds), int), (self.area > 0).astype(float))
        _, average_precision, aupro = pixel_statistics(self.pixels)
        return {
            "image AUROC": score_statistics(units, self.score, COHORT)[0].values,
            "pixel AP": average_precision.values,
            "AUPRO": aupro.values,
            "Dice at 0.5": pooled_dice(self.pixels, np.full(len(folds), 0.5)).values,
            "Dice at its own": pooled_dice(self.pixels, self._thresholds(folds)).values,
            **{f"{low}–{high} mm²": self._sensitivity(low, high) for low, high in SIZES_MM2},
        }

    def _thresholds(self, folds: np.ndarray) -> np.ndarray:
        """For each patient (P,) the threshold with the highest Dice on the patients of other folds."""
        best = []
        for fold in folds:
            others = sum((self.pixels[at] for at in np.flatnonzero(folds != fold)), PixelHistogram())
            best.append(others.edges[np.nanargmax(others.dice_of_levels)])
        return np.array(best)

    def _sensitivity(self, low: float, high: float) -> Values:
        """Share of the slices with so much tumour that score above 95 % of the tumour-free ones."""
        own = (self.area == 0) | (self.area > low) & (self.area <= high)
        items = self.score[own], self.area[own] > 0, self.patient[own]
        return lambda weights: weighted_curve(sensitivity_at(0.95), *items, weights)


def print_table(trial: Trial, cases: Sequence[Shown], maps: Mapping[str, Grids], limits: tuple[int, int]) -> None:
    """A row a kind of map; below it what it gains over the first, with a 95 % interval over patients."""
    folds = np.array([trial.fold_of(shown.case.case_id) for shown in cases])
    weights = patient_weights(len(cases), REPLICATES, 0)
    first: dict[str, Estimate] = {}
    for name, grids in maps.items():
        values = Scored.of([shown.case for shown in cases], grids, *limits).values(folds)
        known = {metric: estimate(own, weights) for metric, own in values.items()}
        if not first:
            print(f"\n| slices {limits[0]}–{limits[1]} | {' | '.join(known)} |\n|---{'|---' * len(known)}|")
        print(f"| {name} | {' | '.join(f'{own.value:.3f}' for own in known.values())} |")
        if first:
            cells = [_gain(own, first[metric]) for metric, own in known.items()]
            print(f"| gain | {' | '.join(cells)} |", flush=True)
        first = first or known


def _gain(ours: Estimate, theirs: Estimate) -> str:
    gap = paired_difference(ours.replicates, theirs.replicates)
    spread = "no interval" if gap.low is None else f"{gap.low:+.3f} to {gap.high:+.3f}"
    return f"{ours.value - theirs.value:+.3f} ({spread})"


def print_cost(trial: Trial, grids: Grids, heads: Heads, encoder: VisionTransformerEncoder) -> None:
    """Milliseconds a slice: the median of five times 16 slices."""
    shown = trial.own[0]
    few = Shown(replace(shown.case, features=shown.case.features[:16]), shown.windows[:16])
    work = {"encoder": lambda: encoder.encode(few.windows)}
    for name, modules in heads.items():
        work[name] = lambda module=modules[0]: refine(module, few, grids[shown.case.case_id][:16])
    for name, do in work.items():
        took = []
        for _ in range(5):
            started = time.perf_counter()
            do()
            took.append(time.perf_counter() - started)
        print(f"{name}: {1000 * np.median(took) / 16:.1f} ms a slice, {torch.get_num_threads()} threads")


def change(trial: Trial, encoder: VisionTransformerEncoder, how: str, by: float) -> tuple[list[Shown], Grids]:
    """One of EVERY slices with other intensities, encoded anew; its grids are by decoders that have not seen it."""
    levels = np.arange(256) / 255
    table = np.round(255 * (levels * by if how == "gain" else levels**by).clip(0, 1)).astype(np.uint8)
    changed: list[Shown] = []
    grids: Grids = {}
    for shown in trial.own:
        windows = table[shown.windows[::EVERY]]
        features = shown.case.features[::EVERY]
        if by != 1:
            features = _encoded(windows, encoder, trial.work / f"{shown.case.case_id}-{how}-{by}.npz")
        few = {name: getattr(shown.case, name)[::EVERY] for name in ("slice_index", "images", "brain", "masks")}
        case = replace(shown.case, **few, features=features, mirrored=None)
        changed.append(Shown(case, windows))
        grids[case.case_id] = decode_case(trial.decoder(trial.fold_of(case.case_id)), case)
    return changed, grids


def _encoded(windows: np.ndarray, encoder: VisionTransformerEncoder, file: Path) -> np.ndarray:
    if not file.is_file():
        batches = [encoder.encode(windows[start : start + 16]).half() for start in range(0, len(windows), 16)]
        save_grids(file, {"features": torch.cat(batches).numpy()})
    return load_grids(file)["features"]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(sys.argv[1], sys.argv[2], sys.argv[3:])

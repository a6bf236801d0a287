"""Compares decoders by cross-validation: `python tests/measure_decoders.py DATA WORK VARIANT…`.

A VARIANT is settings with commas between, such as `train.context_mm=4,train.window_mm=182`. For every one, decoders are
trained without each fold of patients in turn (as in `medad train`), and score the maps of patients they have not seen.
WORK keeps what is encoded and trained; the same command goes on where it stopped. Prints a table in Markdown.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from medad_core.config import Settings, load_settings
from medad_core.metrics import PixelHistogram
from medad_core.models.decoder import image_scores
from medad_core.models.device import device_of
from medad_core.models.encoder import load_encoder
from medad_core.models.text import load_sentences, load_text_encoder, text_features
from medad_core.run.gather import by_index, find_cohort
from medad_core.training.features import TrainingCase, encode_cohort
from medad_core.training.fitting import Grids, cross_fit
from medad_core.training.folds import deal_folds
from medad_core.training.loop import arithmetic_of

SIZES_MM2 = ((0, 50), (50, 200), (200, 400), (400, 800), (800, np.inf))
FALSE_POSITIVES = 0.05
RANGES = ((60, 100), (20, 130))  # that of the paper, and one with more tumour-free slices


def main(data: str, work: str, variants: list[str]) -> None:
    """Train, score and print every variant."""
    print(f"| variant | slices | {' | '.join(columns())} |\n|---{'|---' * (len(columns()) + 1)}|")
    for variant in variants:
        settings = load_settings(None, ["train.hold_out_test=false", *variant.split(",")])
        cases, grids = cross_validated(data, Path(work), variant, settings)
        for first, last in RANGES:
            values = scores(cases, grids, first, last)
            cells = [f"{values[name]:.3f}" for name in columns()]
            print(f"| {variant} | {first}–{last} | {' | '.join(cells)} |", flush=True)


def columns() -> list[str]:
    """The names of the values, in order."""
    sizes = [f"{low:g}–{high:g} mm²" for low, high in SIZES_MM2]
    return ["image AUROC", "pixel AUROC", "pixel AP", "AUPRO", "Dice", *sizes]


def cross_validated(data: str, work: Path, variant: str, settings: Settings) -> tuple[list[TrainingCase], Grids]:
    """The cases, and their maps by decoders that have not seen the patient."""
    cohort = find_cohort(data, by_index(settings.data))
    device = device_of(settings)
    encoder = load_encoder(
        settings.models.encoder, device, image_size=settings.train.image_pixels, where=settings.models
    )
    started = time.perf_counter()
    cases, _ = encode_cohort(cohort, cohort.members, settings, encoder, work / "features", lambda *_: None)
    print(f"encoded in {time.perf_counter() - started:.1f} s", file=sys.stderr)
    text = text_features(load_text_encoder(settings.models.text_encoder), load_sentences())
    folds = deal_folds(cases, settings.train.folds, settings.data.first_slice, settings.data.last_slice, 0)
    place = work / variant
    place.mkdir(parents=True, exist_ok=True)
    fitted = cross_fit(
        cases, folds, text, settings.train, place, arithmetic_of(settings.train, device), lambda *_: None
    )
    return cases, fitted.grids


def scores(cases: list[TrainingCase], grids: Grids, first: int, last: int) -> dict[str, float]:
    """Values of the maps of slices first..last; sensitivities at the threshold that 5 % of tumour-free slices pass."""
    pixels = PixelHistogram()
    score: list[float] = []
    area: list[float] = []
    for case in cases:
        for number in case.within(first, last):
            mask = case.masks[number]
            rendered = case.render(grids[case.case_id], number)
            score.append(float(image_scores(case.scored_map(grids[case.case_id], number), "quantile", 0.999)[0]))
            area.append(float(mask.sum() * case.pixel_mm2))
            pixels.accumulate(rendered[0].numpy(), np.asarray(mask))
    score_of, area_of = np.array(score), np.array(area)
    limit = np.quantile(score_of[area_of == 0], 1 - FALSE_POSITIVES)
    sensitivities = {
        f"{low:g}–{high:g} mm²": float(np.mean(score_of[(area_of > low) & (area_of <= high)] > limit))
        for low, high in SIZES_MM2
    }
    return {
        "image AUROC": roc_auc_score(area_of > 0, score_of),
        "pixel AUROC": pixels.auroc,
        "pixel AP": pixels.average_precision,
        "AUPRO": pixels.aupro,
        "Dice": pixels.dice(0.5),
        **sensitivities,
    }


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])

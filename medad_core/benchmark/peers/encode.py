"""Slices to maps: the stage `maps` beside the loops that people write around the same models.

One decision: all use the weights, the view and the pictures that medad screens with, so their scores must agree. The
floor is the same number of operations as the fastest matrix product of this device; medad's share of it is its speed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from medad_core.benchmark.duel import PAIRS, Act, Contender, Contest, DuelReport, Fact, Result, duel
from medad_core.benchmark.flops import flops_per_slice, shape_of
from medad_core.benchmark.generated import write_run
from medad_core.benchmark.maps_stage import naive_loop
from medad_core.benchmark.timing import best_gemm, wait
from medad_core.config import Settings
from medad_core.errors import UsageError
from medad_core.models.blocks import PRECISIONS, cast_products
from medad_core.models.decoder import image_scores, render_maps
from medad_core.models.device import batch_size_of, device_of
from medad_core.models.encoder import encoder_folder
from medad_core.models.loading import load_tower
from medad_core.models.text import load_sentences, load_text_encoder, text_features
from medad_core.models.vision import FAMILIES
from medad_core.progress import ReportText
from medad_core.run.fingerprints import view_of
from medad_core.run.run import Run
from medad_core.stages import maps
from medad_core.stages.batches import read_cases
from medad_core.stages.loading import MapModels, load_map_models

CASES = 12
SLICES = 41
_SHARED = 8  # slices of a batch that all threads of a CPU share: 1.13 times as fast as 16
_GEMM_S = 1.0  # over which each matrix product is measured


@dataclass(frozen=True)
class Slices:
    """A run whose slices are written, and the models for its maps."""

    run: Run
    models: MapModels
    cases: tuple[str, ...]
    count: int


def benchmark_encoders(
    settings: Settings,
    against: Sequence[str] = (),
    pairs: int = PAIRS,
    progress: ReportText = lambda _text: None,
    cases: int = CASES,
) -> DuelReport:
    """Encode generated slices of `cases` cases. Raises UsageError and UnequalError as `duel`, WeightsError."""
    ENCODE.chosen(against)
    models = load_map_models(settings)
    with tempfile.TemporaryDirectory(prefix="medad-benchmark-") as folder:
        run = Run(folder, settings)
        write_run(run, cases, SLICES)
        case_ids = tuple(case_id for part in run.stage("slices").plan().parts for case_id in part.inputs)
        given = Slices(run, models, case_ids, cases * SLICES)
        described = f"{given.count} generated slices, encoder {settings.models.encoder}, {models.encoder.precision}"
        device = device_of(settings)
        name = torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
        report = duel(ENCODE, given, described, against, pairs, progress, name)
    share = [pairing.ratio for pairing in report.pairings if pairing.is_floor]
    facts = [Fact("share of the fastest matrix product", 100 * ratio, "%") for ratio in share]
    return report.with_facts(Fact("slices", given.count, ""), *facts)


def _by_medad(given: Slices) -> Act:
    parts = range(len(given.run.stage("maps").plan().parts))

    def act() -> Callable[[], Result]:
        maps.run_parts(given.run, parts, models=given.models)
        return lambda: {"scores": given.run.stage("maps").read(["anomaly_score"])["anomaly_score"].to_numpy()}

    return act


def _one_at_a_time(given: Slices) -> Act:
    where = given.run.settings.models
    encoder = load_text_encoder(where.text_encoder, where=where)
    sentences = load_sentences()
    text = partial(text_features, encoder, sentences)

    def act() -> Callable[[], Result]:
        scores = naive_loop(given.run, given.cases, given.count, given.models, text)
        return lambda: {"scores": np.array(scores)}

    return act


def _by_transformers(given: Slices) -> Act:
    where = given.run.settings.models
    models = given.models
    encoder = models.encoder
    if encoder.family.load != FAMILIES["dinov2"].load:
        raise UsageError(f"--against transformers: it runs Dinov2Model, and models.encoder={where.encoder} is another")
    model = load_tower("Dinov2Model", encoder_folder(where.encoder, where=where)).eval().requires_grad_(False)
    model = cast_products(model, encoder.precision).to(models.device)
    size = _SHARED if models.device.type == "cpu" else batch_size_of(given.run.settings, models.device)
    score = where.image_score

    @torch.inference_mode()
    def scores_of(images: np.ndarray) -> list[float]:
        with torch.autocast(models.device.type, PRECISIONS[encoder.precision], encoder.precision != "float32"):
            states = model(pixel_values=encoder.prepare(images), output_hidden_states=True).hidden_states
        taps = torch.stack([states[number][:, encoder.family.class_tokens :] for number in encoder.tapped], dim=1)
        grid = models.decoder(taps.unflatten(2, (encoder.grid, encoder.grid)).float()).half()
        rendered = render_maps(grid, *images.shape[-2:])
        return image_scores(rendered, score.kind, score.quantile).tolist()

    def act() -> Callable[[], Result]:
        scores: list[float] = []
        for case in read_cases(given.run.stage("slices"), given.cases, view_of(given.run.settings)):
            for start in range(0, len(case.images), size):
                scores += scores_of(case.images[start : start + size])
        return lambda: {"scores": np.array(scores)}

    return act


def _as_products(given: Slices) -> Act:
    device = given.models.device
    side, multiply = best_gemm(PRECISIONS[given.models.encoder.precision], device, _GEMM_S)
    times = max(1, round(given.count * flops_per_slice(shape_of(given.models.encoder)) / (2 * side**3)))

    def act() -> Callable[[], Result]:
        for _ in range(times):
            multiply()
        wait(device)
        return dict

    return act


ENCODE: Contest[Slices] = Contest(
    work="encode",
    ours=Contender("medad", "the stage `maps`, from Parquet to Parquet", _by_medad),
    peers=(
        Contender(
            "one-at-a-time",
            "re-stated: AnomalyGPT's loop, one picture at a time, and all sentences again for each",
            _one_at_a_time,
        ),
        Contender("transformers", "real: Dinov2Model, in batches", _by_transformers, ("transformers",)),
    ),
    tolerance={"scores": 0.005},  # grids are rounded to half precision, 0.4 % of the odds
    floors=(Contender("products", "the same operations as the fastest square matrix product", _as_products),),
)

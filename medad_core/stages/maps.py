"""Slices to anomaly maps: one forward pass of encoder and decoder a slice, kept as a 2 kB grid in `RUN/maps/`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from medad_core.config import Settings
from medad_core.models.decoder import image_scores, peaks, render_maps
from medad_core.stages.batches import (
    Batch,
    CaseSlices,
    InPieces,
    ahead,
    batches_of,
    case_results,
    compute_batches,
    read_cases,
    refuse_not_finite,
)
from medad_core.stages.common import Progress, plan_after, run_casewise, stage_of
from medad_core.stages.models import (
    MapModels,
    batch_size_of,
    device_of,
    load_map_models,
    maps_fingerprint,
    settled_precision,
    worker_device,
)
from medad_core.stages.rows import map_rows
from medad_core.store import PartRecord, Plan


def plan(run: str, settings: Settings) -> Plan:
    """One part of maps for each part of slices. The precision that `auto` comes to is settled here, for whoever goes on with the run."""
    there = stage_of(run, "maps").find_plan()
    return plan_after(run, "slices", "maps", maps_fingerprint(settings, there and there.fingerprint))


def run_parts(
    run: str,
    settings: Settings,
    numbers: Sequence[int],
    progress: Progress = lambda _: None,
    models: MapModels | None = None,
) -> list[PartRecord]:
    """Encode and decode the slices of the given parts. `models` are loaded where they are not given."""
    if not numbers:
        return []
    stage = stage_of(run, "maps")
    planned = stage.plan()
    case_ids = [case_id for number in numbers for case_id in planned.parts[number].inputs]
    with worker_device(run, device_of(settings)) as device:
        models = models or load_map_models(settings, device, settled_precision(planned.fingerprint))
        batches = batches_of(
            read_cases(stage_of(run, "slices"), case_ids),
            batch_size_of(settings, models.device),
            pinned=models.device.type == "cuda",
        )
        with closing(maps_of(ahead(batches), models, settings)) as maps:
            return run_casewise(stage, numbers, lambda case_id: _rows(case_id, *next(maps)), progress)


def maps_of(
    batches: Iterator[Batch], models: MapModels, settings: Settings
) -> Iterator[tuple[CaseSlices, list[np.ndarray]]]:
    """Every case with its grids (N, taps, gh, gw) float16, scores (N,), peaks (N, 2), and joint embeddings (N, joint) float16 where the weights ask for them."""
    score = settings.models.image_score

    @torch.inference_mode()
    def compute(images: Tensor) -> tuple[Tensor, ...]:
        # Half precision is what is kept, so score and peak are those of the map that anyone renders later.
        features, embedding = models.encode(images)
        grid = models.decoder(features).half()
        rendered = render_maps(grid, *images.shape[1:])
        carried = () if embedding is None else (embedding.half(),)
        return (grid, image_scores(rendered, score.kind, score.quantile), peaks(rendered), *carried)

    key = f"{models.device}, {models.encoder.width} wide, {models.encoder.precision}"
    return case_results(
        compute_batches(batches, InPieces(compute, batch_size_of(settings, models.device), key), models.device)
    )


def _rows(case_id: str, case: CaseSlices, results: list[np.ndarray]) -> pa.Table:
    """Rows of one case. Raises what is wrong with it."""
    if case.fault is not None:
        raise case.fault
    if case.case_id != case_id:
        raise AssertionError(f"rows of {case.case_id} where {case_id} was planned")
    refuse_not_finite(case, results[0])
    return map_rows(case.keys, *results)

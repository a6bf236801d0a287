"""Slices to anomaly maps: one forward pass of encoder and decoder per slice, stored as a 2 kB grid in `RUN/maps/`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from medad_core.config import Settings
from medad_core.models.decoder import image_scores, peaks, render_maps
from medad_core.models.device import batch_size_of, device_of, worker_device
from medad_core.models.lanes import lane_count
from medad_core.run.fingerprints import check_planned, maps_fingerprint, settled_precision, view_of
from medad_core.run.run import Run
from medad_core.stages.batches import (
    CaseImages,
    ImageBatch,
    InPieces,
    batches_of,
    case_results,
    compute_batches,
    made_ahead,
    read_cases,
    refuse_not_finite,
)
from medad_core.stages.loading import MapModels, load_map_models
from medad_core.stages.parts import OnPart, ignore_part, plan_after, run_casewise
from medad_core.stages.rows import map_rows
from medad_core.store import PartRecord, Plan


def plan(run: Run) -> Plan:
    """One part of maps for each part of slices.

    The plan fixes the precision that `auto` selects, also for other machines that resume the run.
    """
    return plan_after(run, "slices", "maps", run.models.maps)


@contextmanager
def opened(run: Run) -> Iterator[MapModels]:
    """Encoder and decoder, on a device that no other worker of the run takes while the block runs.

    Raises WeightsError if they are not those that the stage was planned with.
    """
    planned = run.stage("maps").plan().fingerprint
    check_planned("maps", planned, maps_fingerprint(run.settings, planned))
    with worker_device(run.uri, device_of(run.settings)) as device:
        yield load_map_models(run.settings, device, settled_precision(planned))


def run_parts(
    run: Run, numbers: Sequence[int], on_part: OnPart = ignore_part, models: MapModels | None = None
) -> list[PartRecord]:
    """Encode and decode the slices of the given parts. `models` are opened if not given."""
    if not numbers:
        return []
    stage = run.stage("maps")
    parts = stage.plan().parts
    case_ids = [case_id for number in numbers for case_id in parts[number].inputs]
    with nullcontext(models) if models is not None else opened(run) as loaded:
        size = batch_size_of(run.settings, loaded.device)
        cases = read_cases(run.stage("slices"), case_ids, view_of(run.settings))
        batches = batches_of(cases, size, pinned=loaded.device.type == "cuda")
        with closing(maps_of(made_ahead(batches), loaded, run.settings)) as maps:
            return run_casewise(stage, numbers, lambda case_id: _rows(case_id, *next(maps)), on_part)


def maps_of(
    batches: Iterator[ImageBatch], models: MapModels, settings: Settings
) -> Iterator[tuple[CaseImages, list[np.ndarray]]]:
    """Every case with its results: grids (N, taps, gh, gw) float16, scores (N,), peaks (N, 2) as row and column.

    If the weights need them, the embeddings in the joint space (N, joint) float16 come fourth.
    """
    score = settings.models.image_score

    @torch.inference_mode()
    def compute(images: Tensor) -> tuple[Tensor, ...]:
        # The grid is stored in half precision, so score and peak are computed from it, like later maps.
        features, embedding = models.encode(images)
        grid = models.decoder(features).half()
        rendered = render_maps(grid, *images.shape[-2:])
        carried = () if embedding is None else (embedding.half(),)
        return (grid, image_scores(rendered, score.kind, score.quantile), peaks(rendered), *carried)

    key = f"{models.device}, {models.encoder.width} wide, {models.encoder.precision}"
    pieces = InPieces(compute, batch_size_of(settings, models.device), key)
    return case_results(compute_batches(batches, pieces, models.device, lane_count(settings, models.device)))


def _rows(case_id: str, case: CaseImages, results: list[np.ndarray]) -> pa.Table:
    """Rows of one case. Raises the error of the case, if it has one."""
    if case.error is not None:
        raise case.error
    if case.case_id != case_id:
        raise AssertionError(f"rows of {case.case_id} where {case_id} was planned")
    refuse_not_finite(case, results[0])
    grids, scores, found, *embeddings = results
    if case.windows is not None:  # the pictures were windows, all of one size
        size = np.stack([case.keys["height"].to_numpy(), case.keys["width"].to_numpy()], axis=1)
        found = found * (case.windows[:, 2:] / case.images.shape[-1]) + case.windows[:, :2]
        found = np.clip(found, 0, size - 1)  # a window may reach beyond the picture
    return map_rows(case.keys, grids, scores, found, *(embeddings or [None]), case.windows)

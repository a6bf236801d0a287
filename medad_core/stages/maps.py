"""Slices to anomaly maps: one forward pass of encoder and decoder a slice, kept as a 2 kB grid in `RUN/maps/`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from medad_core.config import Settings
from medad_core.models.decoder import image_scores, peaks, render_maps
from medad_core.stages.common import Progress, plan_after, run_casewise, stage_of
from medad_core.stages.models import MapModels, load_map_models, maps_fingerprint
from medad_core.stages.rows import images_of, map_rows
from medad_core.store import PartRecord, Plan


def plan(run: str, settings: Settings) -> Plan:
    """One part of maps for each part of slices."""
    return plan_after(run, "slices", "maps", maps_fingerprint(settings))


def run_parts(run: str, settings: Settings, numbers: Sequence[int], progress: Progress = lambda _: None, models: MapModels | None = None) -> list[PartRecord]:
    """Encode and decode the slices of the given parts. `models` are loaded where they are not given."""
    if not numbers:
        return []
    models, slices = models or load_map_models(settings), stage_of(run, "slices")

    def make(case_id: str) -> pa.Table:
        return _case_maps(slices.read_case(case_id, ["case_id", "slice_index", "height", "width", "image"]), models, settings)

    return run_casewise(stage_of(run, "maps"), numbers, make, progress)


@torch.inference_mode()
def _case_maps(table: pa.Table, models: MapModels, settings: Settings) -> pa.Table:
    images, size, score = images_of(table), settings.models.batch_size, settings.models.image_score
    grids, scores, tops, embeddings = [], [], [], []
    for start in range(0, len(images), size):
        # Half precision is what is kept, so score and peak are those of the map that anyone renders later.
        features, embedding = models.encode(images[start : start + size])
        grid = models.decoder(features).half()
        rendered = render_maps(grid, *images.shape[1:])
        grids.append(grid.cpu().numpy())
        if embedding is not None:
            embeddings.append(embedding.half().cpu().numpy())
        scores.append(image_scores(rendered, score.kind, score.quantile).cpu().numpy())
        tops.append(peaks(rendered).cpu().numpy())
    return map_rows(table, np.concatenate(grids), np.concatenate(scores), np.concatenate(tops), np.concatenate(embeddings) if embeddings else None)

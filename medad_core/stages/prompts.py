"""Anomaly maps to prompt embeddings: a slice's own tokens in `RUN/prompts/`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from medad_core.config import Settings
from medad_core.models.weights import AnyConverter
from medad_core.stages.common import Progress, plan_after, run_casewise, stage_of
from medad_core.stages.models import device_of, load_converter_of, prompts_fingerprint
from medad_core.stages.rows import embeddings_of, grids_of, prompt_rows
from medad_core.store import PartRecord, Plan

SLICES_AT_ONCE = 64


def plan(run: str, settings: Settings) -> Plan:
    """One part of prompts for each part of maps."""
    return plan_after(run, "maps", "prompts", prompts_fingerprint(settings))


def run_parts(
    run: str, settings: Settings, numbers: Sequence[int], progress: Progress = lambda _: None, converter=None
) -> list[PartRecord]:
    """Convert the maps of the given parts. The converter is loaded where it is not given."""
    if not numbers:
        return []
    maps, device = stage_of(run, "maps"), device_of(settings)
    converter = (converter or load_converter_of(settings)).to(device)

    def make(case_id: str) -> pa.Table:
        table = maps.read_case(
            case_id, ["case_id", "slice_index", "taps", "grid_height", "grid_width", "grid", "embedding"]
        )
        return prompt_rows(table, _tokens(converter, grids_of(table), embeddings_of(table), device))

    return run_casewise(stage_of(run, "prompts"), numbers, make, progress)


@torch.inference_mode()
def _tokens(converter: AnyConverter, grids: np.ndarray, embeddings: np.ndarray | None, device: str) -> np.ndarray:
    """Soft tokens (N, T, width) float16, some slices at a time: `anomalygpt` draws its maps at 224×224."""
    found = []
    for start in range(0, len(grids), SLICES_AT_ONCE):
        inputs = (
            None if array is None else torch.from_numpy(array[start : start + SLICES_AT_ONCE]).to(device)
            for array in (grids, embeddings)
        )
        found.append(converter(*inputs).half().cpu().numpy())
    return np.concatenate(found)

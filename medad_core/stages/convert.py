"""Anomaly maps to prompt embeddings: nine tokens a slice in `RUN/prompts/`."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import torch

from medad_core.config import Settings
from medad_core.stages.common import Progress, plan_after, run_casewise, stage_of
from medad_core.stages.models import load_converter_of, prompts_fingerprint
from medad_core.stages.rows import grids_of, prompt_rows
from medad_core.store import PartRecord, Plan


def plan(run: str, settings: Settings) -> Plan:
    """One part of prompts for each part of maps."""
    return plan_after(run, "maps", "prompts", prompts_fingerprint(settings))


def run_parts(run: str, settings: Settings, numbers: Sequence[int], progress: Progress = lambda _: None, converter=None) -> list[PartRecord]:
    """Convert the maps of the given parts. The converter is loaded where it is not given."""
    if not numbers:
        return []
    converter, maps = converter or load_converter_of(settings), stage_of(run, "maps")

    def make(case_id: str) -> pa.Table:
        table = maps.read_case(case_id, ["case_id", "slice_index", "taps", "grid_height", "grid_width", "grid"])
        with torch.inference_mode():
            return prompt_rows(table, converter(torch.from_numpy(grids_of(table))).half().numpy())

    return run_casewise(stage_of(run, "prompts"), numbers, make, progress)

"""Anomaly maps to prompt embeddings: writes the tokens of each slice to `RUN/prompts/`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import pyarrow as pa
import torch

from medad_core.models.device import device_of
from medad_core.models.weights import AnyConverter
from medad_core.run.fingerprints import check_planned, prompts_fingerprint, view_of
from medad_core.run.run import Run
from medad_core.stages.loading import load_converter_of
from medad_core.stages.parts import OnPart, ignore_part, plan_after, run_casewise
from medad_core.stages.rows import embeddings_of, grids_of, map_frames, prompt_rows
from medad_core.store import PartRecord, Plan
from medad_core.store.schemas import WINDOW

SLICES_AT_ONCE = 64
COLUMNS = ("case_id", "slice_index", "taps", "grid_height", "grid_width", "grid", "embedding")


def plan(run: Run) -> Plan:
    """One part of prompts for each part of maps."""
    return plan_after(run, "maps", "prompts", run.models.prompts)


@contextmanager
def opened(run: Run) -> Iterator[AnyConverter]:
    """The converter, on the device of the settings.

    Raises WeightsError if it is not the one that the stage was planned with.
    """
    check_planned("prompts", run.stage("prompts").plan().fingerprint, prompts_fingerprint(run.settings))
    yield load_converter_of(run.settings).to(device_of(run.settings))


def run_parts(
    run: Run, numbers: Sequence[int], on_part: OnPart = ignore_part, converter: AnyConverter | None = None
) -> list[PartRecord]:
    """Convert the maps of the given parts. The converter is opened if not given."""
    if not numbers:
        return []
    maps = run.stage("maps")
    device = device_of(run.settings)
    columns = [*COLUMNS, *(column.name for column in WINDOW if view_of(run.settings).window_mm)]
    with nullcontext(converter.to(device)) if converter is not None else opened(run) as loaded:

        def make(case_id: str) -> pa.Table:
            table = maps.read_case(case_id, columns)
            return prompt_rows(table, _tokens(loaded, table, device))

        return run_casewise(run.stage("prompts"), numbers, make, on_part)


@torch.inference_mode()
def _tokens(converter: AnyConverter, table: pa.Table, device: str) -> np.ndarray:
    """Map tokens (N, T, width) float16 of rows of maps, some at a time: `anomalygpt` renders its maps at 224×224."""
    tokens = []
    for start in range(0, len(table), SLICES_AT_ONCE):
        some = table.slice(start, SLICES_AT_ONCE)
        grids, frames, embeddings = (
            None if array is None else torch.from_numpy(array).to(device)
            for array in (grids_of(some), map_frames(some), embeddings_of(some))
        )
        tokens.append(converter(grids, frames, embeddings).half().cpu().numpy())
    return np.concatenate(tokens)

"""Small finished stages for the tests of the store."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from medad_core.store import MAPS, Stage

FINGERPRINT = {"decoder": "abc", "scaling": "percentile"}


def maps_of(case_id: str, slices: int = 3) -> pa.Table:
    """Rows of the maps stage for one case; the same for the same case."""
    seed = np.random.default_rng(list(case_id.encode()))
    return pa.table(
        {
            "case_id": [case_id] * slices,
            "slice_index": range(60, 60 + slices),
            "taps": [4] * slices,
            "grid_height": [16] * slices,
            "grid_width": [16] * slices,
            "grid": [seed.normal(size=(4, 16, 16)).astype("<f2").tobytes() for _ in range(slices)],
            "anomaly_score": seed.random(slices),
            "peak_y": seed.random(slices) * 240,
            "peak_x": seed.random(slices) * 240,
            "embedding": pa.nulls(slices, pa.binary()),
        }
    ).cast(MAPS)


def cases(*names: str) -> pa.Table:
    return pa.concat_tables([maps_of(name) for name in names])


def finished(run, *parts: tuple[str, ...]) -> Stage:
    stage = Stage(str(run), "maps", MAPS)
    stage.prepare(FINGERPRINT, parts)
    for number, names in enumerate(parts):
        stage.write_part(number, cases(*names), seconds=0.5)
    stage.finish()
    return stage

"""Maps of a finished run, repeated with noise: as many as a cohort has, with the structure of real ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medad_core.errors import UsageError
from medad_core.stages.rows import bits_of, grids_of, rendered_maps
from medad_core.store import stage_of

MOST = 512  # slices that are taken of a run; more would only take longer to read
_LOGIT_NOISE = 0.05  # of grids: no two maps compress to the same bytes
_MAP_NOISE = 0.004  # of rendered maps: no two have the same pixels


@dataclass(frozen=True)
class RealGrids:
    """Grids of logit differences (n, taps, gh, gw) float16, as the stage `maps` stores them."""

    grids: np.ndarray

    @classmethod
    def of(cls, uri: str) -> RealGrids:
        """Those of the first slices of the run at `uri`. Raises UsageError or StoreError where it has no maps."""
        grids: list[np.ndarray] = []
        stage = stage_of(uri, "maps")
        for case_id in _cases(uri):
            grids += list(grids_of(stage.read_case(case_id)))
            if len(grids) >= MOST:
                break
        return cls(np.stack(grids[:MOST]))

    def repeated(self, count: int) -> Iterator[np.ndarray]:
        """`count` grids, each with noise of its own."""
        rng = np.random.default_rng(0)
        for number in range(count):
            grid = self.grids[number % len(self.grids)]
            yield (grid + _LOGIT_NOISE * rng.standard_normal(grid.shape, np.float32)).astype(np.float16)


@dataclass(frozen=True)
class RealMaps:
    """Rendered maps (n, H, W) float32 from 0 to 1, and masks (n, H, W) bool."""

    maps: np.ndarray
    masks: np.ndarray

    @classmethod
    def of(cls, uri: str) -> RealMaps:
        """Those of the first labelled slices of the run at `uri`, all of one size. Raises as `RealGrids.of`."""
        slices, stage = stage_of(uri, "slices"), stage_of(uri, "maps")
        maps: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        for case_id in _cases(uri):
            rows = slices.read_case(case_id, ["height", "width", "mask"]).to_pylist()
            size = rows[0]["height"], rows[0]["width"]
            labels = [bits_of(row, "mask") for row in rows]
            if labels[0] is None or (maps and maps[0].shape != size):
                continue
            maps += list(rendered_maps(stage.read_case(case_id), *size))
            masks += [mask for mask in labels if mask is not None]
            if len(maps) >= MOST:
                break
        if not maps:
            raise UsageError(f"{uri} has no labelled slices; pixel metrics need masks")
        return cls(np.stack(maps[:MOST]), np.stack(masks[:MOST]))

    def repeated(self, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`count` maps with their masks; each map has noise of its own."""
        rng = np.random.default_rng(0)
        size = self.maps[0].size
        noise = _MAP_NOISE * rng.standard_normal(2 * size, np.float32)
        for number in range(count):
            start = int(rng.integers(size))
            around = noise[start : start + size].reshape(self.maps[0].shape)
            chosen = number % len(self.maps)
            yield np.clip(self.maps[chosen] + around, 0, 1), self.masks[chosen]


def _cases(uri: str) -> list[str]:
    """The cases of the run at `uri` that have maps."""
    cases = [case_id for part in stage_of(uri, "maps").finished_inputs() for case_id in part]
    if not cases:
        raise UsageError(f"{uri} has no case with maps; give a run that has")
    return cases

"""The cache of anomaly maps: how large it is, and how fast rendered maps come back from it.

One decision: everybody stores the same maps of 224 x 224 pixels. medad stores the grid that a map is drawn from, and
draws it; the others store the pixels in half precision, and read them. A reader gets float32 pixels from all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medad_core.benchmark.duel import PAIRS, Act, Contender, Contest, DuelReport, Fact, Result, duel
from medad_core.benchmark.peers.real_maps import RealGrids
from medad_core.models.decoder import render_map
from medad_core.progress import ReportText
from medad_core.stages.rows import map_rows, rendered_maps
from medad_core.store import MAPS, Stage

SLICES = 51_000
SIDE = 224  # pixels of a map
_CASE = 41  # slices
_PART = 4  # cases
_WHOLE = 500  # of so many maps, one is compared pixel by pixel; of the others their mean and their maximum


@dataclass(frozen=True)
class MapCache:
    """What is stored: `count` maps, drawn from real grids with noise; a scratch folder."""

    real: RealGrids
    count: int
    folder: str

    def folder_of(self, name: str) -> Path:
        """The folder that a contender stores its maps in."""
        return Path(self.folder) / name

    def cases(self) -> Iterable[np.ndarray]:
        """The grids case by case."""
        grids = self.real.repeated(self.count)
        while case := list(islice(grids, _CASE)):
            yield np.stack(case)


def benchmark_maps(
    uri: str,
    against: Sequence[str] = (),
    pairs: int = PAIRS,
    progress: ReportText = lambda _text: None,
    slices: int = SLICES,
) -> DuelReport:
    """Store `slices` maps, made of those of the run at `uri`, and read them. Raises as `RealGrids.of` and `duel`."""
    CACHE.chosen(against)
    real = RealGrids.of(uri)
    with tempfile.TemporaryDirectory(prefix="medad-benchmark-") as folder:
        given = MapCache(real, slices, folder)
        described = f"{slices:,} maps of {SIDE} x {SIDE} pixels, repeated from {len(real.grids)} real ones with noise"
        report = duel(CACHE, given, described, against, pairs, progress)
        names = ["medad", *(pairing.name for pairing in report.pairings)]
        stored = {name: sum(file.stat().st_size for file in given.folder_of(name).rglob("*")) for name in names}
    facts = [Fact(f"stored by {name}", size / 1e6, "MB") for name, size in stored.items()]
    ratios = [Fact(f"{name}, times as large", stored[name] / stored["medad"], "x") for name in names[1:]]
    return report.with_facts(Fact("slices", slices, ""), *facts, *ratios)


def _by_medad(given: MapCache) -> Act:
    stage = Stage(str(given.folder_of("medad")), "maps", MAPS)
    names = [f"Case_{number:05d}" for number in range(-(-given.count // _CASE))]
    parts = [names[start : start + _PART] for start in range(0, len(names), _PART)]
    stage.prepare({"benchmark": "maps"}, parts)
    cases = iter(given.cases())
    for number, part in enumerate(parts):
        stage.write_part(number, (_rows(name, next(cases)) for name in part))
    stage.finish()

    def act() -> Callable[[], Result]:
        return _read(rendered_maps(stage.read_case(name), SIDE, SIDE) for name in names)

    return act


def _rows(name: str, grids: np.ndarray) -> pa.Table:
    count = len(grids)
    keys = pa.table({"case_id": [name] * count, "slice_index": pa.array(range(count), pa.int32())})
    return map_rows(keys, grids, np.zeros(count), np.zeros((count, 2)))


def _in_parquet(given: MapCache) -> Act:
    folder = given.folder_of("float16-parquet")
    folder.mkdir()
    files = []
    for number, grids in enumerate(given.cases()):
        files.append(folder / f"{number:05d}.parquet")
        table = pa.table({"map": [_halves(grid).tobytes() for grid in grids]})
        pq.write_table(table, files[-1], compression="zstd")

    def maps_of(file: Path) -> np.ndarray:
        column = pq.read_table(file)["map"]
        pixels = [np.frombuffer(value.as_buffer(), np.float16).reshape(SIDE, SIDE) for value in column]
        return np.stack(pixels).astype(np.float32)

    return lambda: _read(map(maps_of, files))


def _in_npy(given: MapCache) -> Act:
    folder = given.folder_of("npy")
    cases = []
    for number, grids in enumerate(given.cases()):
        below = folder / f"{number:05d}"
        below.mkdir(parents=True)
        cases.append([below / f"{index}.npy" for index in range(len(grids))])
        for file, grid in zip(cases[-1], grids, strict=True):
            np.save(file, _halves(grid))
    return lambda: _read(np.stack([np.load(file).astype(np.float32) for file in files]) for files in cases)


def _halves(grid: np.ndarray) -> np.ndarray:
    return render_map(grid, SIDE, SIDE).astype(np.float16)


def _read(cases: Iterable[np.ndarray]) -> Callable[[], Result]:
    """Take all maps, case by case (n, H, W), and keep of them what is compared."""
    maxima, means, whole = [], [], []
    for case in cases:
        start = -len(maxima) % _WHOLE
        whole += [case[number].copy() for number in range(start, len(case), _WHOLE)]
        means += case.mean(axis=(1, 2), dtype=np.float64).tolist()
        maxima += case.max(axis=(1, 2)).tolist()
    return lambda: {"means": np.array(means), "maxima": np.array(maxima), "pixels": np.stack(whole)}


CACHE: Contest[MapCache] = Contest(
    work="maps",
    ours=Contender("medad", "the stage `maps`: a grid a slice, drawn when it is read", _by_medad),
    peers=(
        Contender("float16-parquet", "re-stated: pixels in half precision, Parquet with zstd", _in_parquet),
        Contender("npy", "re-stated: pixels in half precision, a .npy file a slice", _in_npy),
    ),
    tolerance=dict.fromkeys(("means", "maxima", "pixels"), 2.0**-11),  # of half precision below 1
)

"""What one row scored on one fold with one seed: `DIR/rows/{row}/fold-{f}-seed-{s}.parquet`, histograms beside it.

One decision: the histograms are written first and the scores last, so a unit whose scores are there is done. A unit
that failed leaves a `.failed` file with its reason instead, and is tried again by the same command.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from medad_core.config import ReproduceSettings
from medad_core.errors import StoreError, first_line
from medad_core.metrics import PixelHistogram
from medad_core.store import join, read_table, write_bytes, write_table, write_text
from medad_core.store.files import make_folder, read_bytes, remove
from medad_core.store.listing import size_of

TRAINING_ERROR = "training_error"
SliceKey = tuple[str, int]  # case_id, slice_index
LLM_ROWS = ("proposed", "without-knowledge")  # answered by the LLM; the row "shuffled" takes answers of "proposed"
THROUGH_LLM = (*LLM_ROWS, "shuffled")

SCORES = pa.schema(
    [
        pa.field("case_id", pa.string(), nullable=False),
        pa.field("slice_index", pa.int32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # validation or test
        pa.field("label", pa.int8(), nullable=False),
        pa.field("area_mm2", pa.float64(), nullable=False),  # of the tumour in this slice
        pa.field("score", pa.float64()),  # null and NaN are one: no score
        pa.field("map_score", pa.float64()),  # of the anomaly map under an answer
        pa.field("answer", pa.string()),
        pa.field("answer_parsed", pa.bool_()),
        pa.field("verdict", pa.string()),
        pa.field("location", pa.string()),
        pa.field("location_true", pa.string()),
    ]
)


@dataclass(frozen=True, order=True)
class Unit:
    """One row, fold and seed."""

    row: str
    fold: int
    seed: int

    def __str__(self) -> str:
        return f"{self.row}, fold {self.fold}, seed {self.seed}"


@dataclass(frozen=True)
class ScoredUnit:
    """Scores of a unit.

    frame: a row of SCORES a slice. histograms: by case_id, of validation and test alike. thumbnails: of some maps,
    uint8 at half size (0 to 255 is 0 to 1). Both are empty where a row has no maps. training_error: see
    `baselines.Detector`.
    """

    frame: pd.DataFrame
    histograms: dict[str, PixelHistogram]
    thumbnails: dict[SliceKey, np.ndarray]
    training_error: float | None = None


def seeds_of(row: str, settings: ReproduceSettings) -> tuple[int, ...]:
    """The seeds of a row; rows that depend on no seed have the first alone."""
    if row in ("brightness", "majority"):
        return settings.seeds[:1]
    return settings.seeds[: settings.llm_seeds] if row in THROUGH_LLM else settings.seeds


def units_of(settings: ReproduceSettings, folds: int) -> list[Unit]:
    """Every unit, fold by fold."""
    return [Unit(row, fold, seed) for fold in range(folds) for row in settings.rows for seed in seeds_of(row, settings)]


def is_done(out: str, unit: Unit) -> bool:
    """Whether the scores of a unit are there."""
    return size_of(_at(out, unit, ".parquet")) is not None


def pending(out: str, units: list[Unit]) -> list[Unit]:
    """The units that have no scores yet."""
    return [unit for unit in units if not is_done(out, unit)]


def write_unit(out: str, unit: Unit, scored: ScoredUnit) -> None:
    """Keep what a unit scored."""
    make_folder(join(out, "rows", unit.row))
    packed = io.BytesIO()
    np.savez_compressed(packed, **dict(_packed(scored)))
    write_bytes(_at(out, unit, ".npz"), packed.getvalue())
    write_table(_at(out, unit, ".parquet"), pa.Table.from_pandas(scored.frame, schema=SCORES, preserve_index=False))
    remove(_at(out, unit, ".failed"))


class DamagedUnit(StoreError):
    """The files of a unit cannot be read."""

    def __init__(self, unit: Unit, why: str) -> None:
        super().__init__(
            f"fold {unit.fold}, seed {unit.seed}: its files are damaged ({why}); "
            "run the same command again to make them anew"
        )
        self.unit = unit


def read_unit(out: str, unit: Unit) -> ScoredUnit:
    """What `write_unit` kept. Raises DamagedUnit where it cannot be read."""
    try:
        frame = read_table(_at(out, unit, ".parquet")).to_pandas()
        with np.load(io.BytesIO(read_bytes(_at(out, unit, ".npz")) or b"")) as stored:
            return _unpacked(frame, stored)
    except (StoreError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedUnit(unit, first_line(error)) from error


def discard_unit(out: str, unit: Unit, reason: str) -> None:
    """Make a unit undone, with the reason, so that the next run makes it anew."""
    write_failure(out, unit, reason)
    remove(_at(out, unit, ".parquet"))


def write_failure(out: str, unit: Unit, reason: str) -> None:
    """Note why a unit could not be scored."""
    make_folder(join(out, "rows", unit.row))
    write_text(_at(out, unit, ".failed"), reason + "\n")


def failure_of(out: str, unit: Unit) -> str | None:
    """Why a unit is not there; None for one that is."""
    if is_done(out, unit):
        return None
    noted = read_bytes(_at(out, unit, ".failed"))
    reason = noted.decode().strip() if noted else "not run yet"
    head = f"fold {unit.fold}, seed {unit.seed}: "
    return reason if reason.startswith(head) else head + reason


def _at(out: str, unit: Unit, suffix: str) -> str:
    return join(out, "rows", unit.row, f"fold-{unit.fold}-seed-{unit.seed}{suffix}")


def _packed(scored: ScoredUnit) -> Iterator[tuple[str, np.ndarray]]:
    for case_id, histogram in scored.histograms.items():
        for name, array in histogram.to_arrays().items():
            yield f"histogram/{case_id}/{name}", array
    for (case_id, slice_index), picture in scored.thumbnails.items():
        yield f"map/{case_id}/{slice_index}", picture
    if scored.training_error is not None:
        yield TRAINING_ERROR, np.array(scored.training_error)


def _unpacked(frame: pd.DataFrame, stored: Mapping[str, np.ndarray]) -> ScoredUnit:
    arrays: dict[str, dict[str, np.ndarray]] = {}
    thumbnails: dict[SliceKey, np.ndarray] = {}
    error = float(stored[TRAINING_ERROR]) if TRAINING_ERROR in stored else None
    for key in (key for key in stored if key != TRAINING_ERROR):
        kind, rest = key.split("/", 1)
        case_id, name = rest.rsplit("/", 1)
        if kind == "map":
            thumbnails[case_id, int(name)] = stored[key]
        else:
            arrays.setdefault(case_id, {})[name] = stored[key]
    histograms = {case_id: PixelHistogram.from_arrays(of_case) for case_id, of_case in arrays.items()}
    return ScoredUnit(frame, histograms, thumbnails, error)

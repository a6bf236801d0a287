"""From the scores of all units to the long table.

One decision: every number is a function of how often each patient counts, so its value, its interval and its paired difference
to the proposed scheme come from the same lines and the same draws. Seeds are averaged within a draw. The scores of all folds
are pooled as they are; each fold's thresholds come from its own validation patients and are applied to its own test patients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from medad_core.config import Settings
from medad_core.metrics.bootstrap import interval, patient_weights
from medad_core.metrics.comparison import delong, paired_difference
from medad_core.metrics.rows import RuledStatistic
from medad_core.reproduce.decisions import SeedOfRow, seed_of_row
from medad_core.reproduce.schema import PROPOSED, ROWS, TABLE
from medad_core.reproduce.study import Study
from medad_core.reproduce.units import Unit, failure_of, read_unit, seeds_of

CellKey = tuple[str, str, str, str]  # level, metric, rule, subset


@dataclass(frozen=True)
class Cell:
    """One number of one row: its value (mean over seeds, NaN where undefined), each seed's, and its bootstrap replicates (B,)."""

    value: float
    seeds: tuple[float, ...]
    draws: np.ndarray
    n: int
    undefined: str


@dataclass(frozen=True)
class RowOfGroup:
    """A row of the table for patients or for phantoms."""

    row: str
    group: str
    seeds: tuple[SeedOfRow, ...]
    cells: dict[CellKey, Cell]


@dataclass(frozen=True)
class Table:
    """The long table, the rows it is made of, and why the others failed."""

    lines: pa.Table
    rows: tuple[RowOfGroup, ...]
    failed: dict[str, str]


def make_table(out: str, study: Study, settings: Settings) -> Table:
    """The table of a study from its unit files. Raises StoreError where a file is damaged."""
    failed = {row: reason for row in settings.reproduce.rows if (reason := _failure(out, study, row, settings))}
    rows = [row for group in study.groups for row in _group(out, study, group, [row for row in settings.reproduce.rows if row not in failed], settings)]
    lines = [line for group in study.groups for line in _lines([row for row in rows if row.group == group])]
    return Table(pa.Table.from_pylist(lines, schema=TABLE), tuple(rows), failed)


def _failure(out: str, study: Study, row: str, settings: Settings) -> str | None:
    if not study.folds:
        return "no case with a segmentation could be used"
    units = [Unit(row, fold, seed) for fold in range(len(study.folds)) for seed in seeds_of(row, settings.reproduce)]
    reasons = [reason for unit in units if (reason := failure_of(out, unit))]
    return reasons[0] if reasons else None


def _group(out: str, study: Study, group: str, rows: Sequence[str], settings: Settings) -> Iterator[RowOfGroup]:
    weights = None
    for row in rows:
        seeds = tuple(
            seed_of_row(row, group, study, [read_unit(out, Unit(row, fold, seed)) for fold in range(len(study.folds))], settings) for seed in seeds_of(row, settings.reproduce)
        )
        if weights is None:
            weights = patient_weights(seeds[0].units.patients, settings.evaluate.bootstrap, settings.evaluate.seed)
        yield RowOfGroup(row, group, seeds, _cells([seed.statistics for seed in seeds], seeds[0].units.patients, weights))


def _cells(statistics: Sequence[Sequence[RuledStatistic]], patients: int, weights: np.ndarray) -> dict[CellKey, Cell]:
    """Every statistic, averaged over seeds."""
    found = {}
    ones = np.ones((1, patients))
    for of_seeds in zip(*statistics, strict=True):
        first = of_seeds[0]
        values = tuple(float(statistic.values(ones)[0]) for statistic in of_seeds)
        value = float(np.mean(values))
        reason = next((s.undefined for s, v in zip(of_seeds, values, strict=True) if np.isnan(v)), first.undefined)
        draws = np.mean([s.values(weights) for s in of_seeds], axis=0) if len(weights) and not np.isnan(value) else np.zeros(0)
        found[first.level, first.metric, first.rule, first.subset] = Cell(value, values, draws, first.n, reason)
    return found


def _lines(rows: Sequence[RowOfGroup]) -> Iterator[dict]:
    reference = next((row for row in rows if row.row == PROPOSED), None)
    for row in rows:
        for key, cell in row.cells.items():
            yield {**_head(row, key, cell), **_value(cell, row), **_difference(row, key, cell, reference)}


def _head(row: RowOfGroup, key: CellKey, cell: Cell) -> dict:
    level, metric, rule, subset = key
    return {"row": row.row, "title": ROWS[row.row].title, "group": row.group, "level": level, "metric": metric, "rule": rule, "subset": subset, "n": cell.n, "seeds": len(row.seeds)}


def _value(cell: Cell, row: RowOfGroup) -> dict:
    if np.isnan(cell.value):
        return {"reason": cell.undefined}
    spread = interval(cell.draws, row.seeds[0].units.patients)
    sd = float(np.std(cell.seeds, ddof=1)) if len(cell.seeds) > 1 else None
    return {"value": cell.value, "sd": sd, "ci_low": spread.low, "ci_high": spread.high, "reason": spread.reason}


def _difference(row: RowOfGroup, key: CellKey, cell: Cell, reference: RowOfGroup | None) -> dict:
    """Against the proposed scheme on the same patients, whose decisions are the LLM's own."""
    if reference is None or row is reference:
        return {}
    level, metric, rule, subset = key
    *how, _ = rule.split("/")
    other = reference.cells.get(key) or reference.cells.get((level, metric, "/".join([*how, "answer"]), subset))
    if other is None or np.isnan(cell.value) or np.isnan(other.value):
        return {}
    gap = paired_difference(cell.draws, other.draws) if len(cell.draws) and len(other.draws) else None
    found = {"difference": cell.value - other.value}
    if gap is not None:
        found |= {"difference_low": gap.low, "difference_high": gap.high, "p_bootstrap": gap.p}
    if (level, metric) == ("image", "auroc"):
        mine, theirs = row.seeds[0].units, reference.seeds[0].units
        known = ~np.isnan(mine.label)
        found["p_delong"] = delong(mine.score[known], theirs.score[known], mine.label[known] == 1).p
    return found

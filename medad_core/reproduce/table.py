"""From the scores of all units to the long table.

One decision: every number is a function of how often each patient counts, so its value, its interval and its paired difference
to the proposed scheme come from the same lines and the same draws. Seeds are averaged within a draw; a difference is taken over the
seeds that both rows have. Folds are never ranked against each other, and each has thresholds of its own validation patients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from medad_core.config import Settings
from medad_core.metrics.bootstrap import interval, patient_weights
from medad_core.metrics.comparison import delong, paired_difference
from medad_core.metrics.rows import RuledStatistic
from medad_core.reproduce.decisions import SeedOfRow, seed_of_row
from medad_core.reproduce.schema import PROPOSED, ROWS, TABLE
from medad_core.reproduce.study import Study
from medad_core.reproduce.units import DamagedUnit, Unit, discard_unit, failure_of, read_unit, seeds_of

CellKey = tuple[str, str, str, str]  # level, metric, rule, subset


@dataclass(frozen=True)
class Cell:
    """One number of one row: by seed its value (NaN where undefined) and bootstrap replicates (S, B); `n` None where seeds differ in it."""

    seeds: tuple[int, ...]
    values: np.ndarray
    draws: np.ndarray
    n: int | None
    undefined: str

    @property
    def value(self) -> float:
        return float(self.values.mean())

    def of(self, seeds: Sequence[int]) -> Cell:
        """The same number of some of the seeds."""
        at = [self.seeds.index(seed) for seed in seeds]
        return replace(self, seeds=tuple(seeds), values=self.values[at], draws=self.draws[at])


@dataclass(frozen=True)
class RowOfGroup:
    """A row of the table for patients or for phantoms, by seed."""

    row: str
    group: str
    seeds: Mapping[int, SeedOfRow]
    cells: dict[CellKey, Cell]

    @property
    def first(self) -> SeedOfRow:
        return next(iter(self.seeds.values()))


@dataclass(frozen=True)
class Table:
    """The long table, the rows it is made of, and why the others failed."""

    lines: pa.Table
    rows: tuple[RowOfGroup, ...]
    failed: dict[str, str]


def make_table(out: str, study: Study, settings: Settings) -> Table:
    """The table of a study from its unit files. A row with a damaged file has failed, and the file makes way for the next run."""
    failed = {row: reason for row in settings.reproduce.rows if (reason := _failure(out, study, row, settings))}
    rows: list[RowOfGroup] = []
    for row in (row for row in settings.reproduce.rows if row not in failed):
        try:
            rows += [_row(out, study, row, group, settings) for group in study.groups]
        except DamagedUnit as error:
            discard_unit(out, error.unit, str(error))
            failed[row] = str(error)
    lines = [line for group in study.groups for line in _lines([row for row in rows if row.group == group])]
    rows.sort(key=lambda row: study.groups.index(row.group))
    return Table(pa.Table.from_pylist(lines, schema=TABLE), tuple(rows), failed)


def _failure(out: str, study: Study, row: str, settings: Settings) -> str | None:
    if not study.folds:
        return "no case with a segmentation could be used"
    units = [Unit(row, fold, seed) for fold in range(len(study.folds)) for seed in seeds_of(row, settings.reproduce)]
    reasons = [reason for unit in units if (reason := failure_of(out, unit))]
    return reasons[0] if reasons else None


def _row(out: str, study: Study, row: str, group: str, settings: Settings) -> RowOfGroup:
    """One row; of each seed only what is printed is kept, because the histograms of a large cohort fill memory."""
    seeds: dict[int, SeedOfRow] = {}
    measured = []
    for seed in seeds_of(row, settings.reproduce):
        made = seed_of_row(
            row, group, study, [read_unit(out, Unit(row, fold, seed)) for fold in range(len(study.folds))], settings
        )
        weights = patient_weights(made.units.patients, settings.evaluate.bootstrap, settings.evaluate.seed)
        measured.append([_measure(statistic, made.units.patients, weights) for statistic in made.statistics])
        seeds[seed] = replace(made, statistics=(), units=replace(made.units, histograms=None))
    cells = (joined(tuple(seeds), of_seeds) for of_seeds in zip(*measured, strict=True))
    return RowOfGroup(row, group, seeds, dict(cells))


def _measure(statistic: RuledStatistic, patients: int, weights: np.ndarray) -> tuple[CellKey, Cell]:
    value = statistic.values(np.ones((1, patients)))
    draws = statistic.values(weights) if len(weights) and not np.isnan(value[0]) else np.full(len(weights), np.nan)
    return (statistic.level, statistic.metric, statistic.rule, statistic.subset), Cell(
        (0,), value, draws[None], statistic.n, statistic.undefined
    )


def joined(seeds: tuple[int, ...], of_seeds: Sequence[tuple[CellKey, Cell]]) -> tuple[CellKey, Cell]:
    """One cell of several seeds; undefined for the reason of the first that is."""
    (key, first), cells = of_seeds[0], [cell for _, cell in of_seeds]
    undefined = next((cell.undefined for cell in cells if np.isnan(cell.value)), first.undefined)
    n = first.n if len({cell.n for cell in cells}) == 1 else None
    return key, Cell(
        seeds,
        np.concatenate([cell.values for cell in cells]),
        np.concatenate([cell.draws for cell in cells]),
        n,
        undefined,
    )


def _lines(rows: Sequence[RowOfGroup]) -> Iterator[dict]:
    reference = next((row for row in rows if row.row == PROPOSED), None)
    for row in rows:
        for key, cell in row.cells.items():
            yield {**_head(row, key, cell), **_value(cell, row), **_difference(row, key, cell, reference)}


def _head(row: RowOfGroup, key: CellKey, cell: Cell) -> dict:
    level, metric, rule, subset = key
    return {
        "row": row.row,
        "title": ROWS[row.row].title,
        "group": row.group,
        "level": level,
        "metric": metric,
        "rule": rule,
        "subset": subset,
        "n": cell.n,
        "seeds": len(row.seeds),
    }


def _value(cell: Cell, row: RowOfGroup) -> dict:
    if np.isnan(cell.value):
        return {"reason": cell.undefined}
    spread = interval(cell.draws.mean(axis=0), row.first.units.patients)
    sd = float(np.std(cell.values, ddof=1)) if len(cell.seeds) > 1 else None
    return {"value": cell.value, "sd": sd, "ci_low": spread.low, "ci_high": spread.high, "reason": spread.reason}


def _difference(row: RowOfGroup, key: CellKey, cell: Cell, reference: RowOfGroup | None) -> dict:
    """Against the proposed scheme on the same patients and seeds, whose decisions are the LLM's own. DeLong takes the first of the seeds."""
    if reference is None or row is reference:
        return {}
    level, metric, rule, subset = key
    *how, _ = rule.split("/")
    other = reference.cells.get(key) or reference.cells.get((level, metric, "/".join([*how, "answer"]), subset))
    common = [seed for seed in cell.seeds if other is not None and seed in other.seeds]
    if not common:
        return {}
    cell, other = cell.of(common), other.of(common)
    if np.isnan(cell.value) or np.isnan(other.value):
        return {}
    found = {"difference": cell.value - other.value}
    if cell.draws.size:
        gap = paired_difference(cell.draws.mean(axis=0), other.draws.mean(axis=0))
        found |= {"difference_low": gap.low, "difference_high": gap.high, "p_bootstrap": gap.p}
    if (level, metric) == ("image", "auroc"):
        mine, theirs = row.seeds[common[0]].units, reference.seeds[common[0]].units
        known = ~np.isnan(mine.label)
        found["p_delong"] = delong(
            mine.score[known], theirs.score[known], mine.label[known] == 1, mine.fold[mine.patient[known]]
        ).p
    return found

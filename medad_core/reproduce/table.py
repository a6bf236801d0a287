"""From the scores of all units to the long table.

One decision: every number is a function of how often each patient counts, so its value, its interval and its paired
difference to the proposed scheme come from the same lines and the same draws. Seeds are averaged within a draw. A
difference is taken over the seeds that both rows have. Folds are never ranked against each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from medad_core.config import Settings
from medad_core.metrics.bootstrap import estimate, interval, patient_weights
from medad_core.metrics.comparison import delong, paired_difference
from medad_core.metrics.statistic import Statistic
from medad_core.reproduce.decisions import SeedOfRow, seed_of_row
from medad_core.reproduce.experiment import Experiment
from medad_core.reproduce.measures import RowUnits
from medad_core.reproduce.schema import PROPOSED, ROWS, TABLE
from medad_core.reproduce.units import DamagedUnit, Unit, discard_unit, failure_of, read_unit, seeds_of

CellKey = tuple[str, str, str, str]  # level, metric, rule, subset


@dataclass(frozen=True)
class Cell:
    """One number of one row, by seed: values (S,), NaN where undefined, and bootstrap replicates `draws` (S, B).

    `n` is None where seeds differ in it.
    """

    seeds: tuple[int, ...]
    values: np.ndarray
    draws: np.ndarray
    n: int | None
    undefined: str

    @property
    def value(self) -> float:
        """Mean over seeds; NaN where one is undefined."""
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
        """The row with the first of its seeds."""
        return next(iter(self.seeds.values()))


@dataclass(frozen=True)
class Table:
    """The long table, the rows it is made of, and why the others failed."""

    lines: pa.Table
    rows: tuple[RowOfGroup, ...]
    failed: dict[str, str]


def make_table(out: str, experiment: Experiment, settings: Settings) -> Table:
    """The table of an experiment from its unit files.

    A row with a damaged file has failed, and the file makes way for the next run.
    """
    rows: list[RowOfGroup] = []
    failed: dict[str, str] = {}
    for row in settings.reproduce.rows:
        reason = _failure(out, experiment, row, settings)
        if reason:
            failed[row] = reason
    for row in settings.reproduce.rows:
        if row in failed:
            continue
        try:
            rows += [_row(out, experiment, row, group, settings) for group in experiment.groups]
        except DamagedUnit as error:
            discard_unit(out, error.unit, str(error))
            failed[row] = str(error)
    rows.sort(key=lambda row: experiment.groups.index(row.group))
    lines: list[dict] = []
    for group in experiment.groups:
        lines += _lines([row for row in rows if row.group == group])
    return Table(pa.Table.from_pylist(lines, schema=TABLE), tuple(rows), failed)


def _failure(out: str, experiment: Experiment, row: str, settings: Settings) -> str | None:
    """Why a row has no numbers; None for one whose units are all done."""
    if not experiment.folds:
        return "no case with a segmentation could be used"
    for fold in range(len(experiment.folds)):
        for seed in seeds_of(row, settings.reproduce):
            reason = failure_of(out, Unit(row, fold, seed))
            if reason:
                return reason
    return None


def _row(out: str, experiment: Experiment, row: str, group: str, settings: Settings) -> RowOfGroup:
    """One row; of each seed only what is printed is kept, because the histograms of a large cohort fill memory."""
    seeds: dict[int, SeedOfRow] = {}
    measured = []
    for seed in seeds_of(row, settings.reproduce):
        folds = [read_unit(out, Unit(row, fold, seed)) for fold in range(len(experiment.folds))]
        of_seed = seed_of_row(row, group, experiment, folds, settings)
        weights = patient_weights(of_seed.units.patients, settings.evaluate.bootstrap, settings.evaluate.seed)
        measured.append([_measure(statistic, weights) for statistic in of_seed.statistics])
        seeds[seed] = replace(of_seed, statistics=(), units=replace(of_seed.units, histograms=None))
    cells = (joined(tuple(seeds), of_seeds) for of_seeds in zip(*measured, strict=True))
    return RowOfGroup(row, group, seeds, dict(cells))


def _measure(statistic: Statistic, weights: np.ndarray) -> tuple[CellKey, Cell]:
    key = (statistic.level, statistic.metric, statistic.rule, statistic.subset)
    measured = estimate(statistic.values, weights)
    values = np.array([measured.value])
    return key, Cell((0,), values, measured.replicates[None], statistic.n, statistic.undefined)


def joined(seeds: tuple[int, ...], of_seeds: Sequence[tuple[CellKey, Cell]]) -> tuple[CellKey, Cell]:
    """One cell of several seeds; undefined for the reason of the first that is."""
    key, first = of_seeds[0]
    cells = [cell for _, cell in of_seeds]
    undefined = next((cell.undefined for cell in cells if np.isnan(cell.value)), first.undefined)
    n = first.n if len({cell.n for cell in cells}) == 1 else None
    values = np.concatenate([cell.values for cell in cells])
    draws = np.concatenate([cell.draws for cell in cells])
    return key, Cell(seeds, values, draws, n, undefined)


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
    """Against the proposed scheme on the same patients and seeds. DeLong's test takes the first of the seeds."""
    if reference is None or row is reference:
        return {}
    other = _counterpart(reference, key)
    common = [seed for seed in cell.seeds if other is not None and seed in other.seeds]
    if other is None or not common:
        return {}
    cell = cell.of(common)
    other = other.of(common)
    if np.isnan(cell.value) or np.isnan(other.value):
        return {}
    difference = {"difference": cell.value - other.value}
    if cell.draws.size:
        gap = paired_difference(cell.draws.mean(axis=0), other.draws.mean(axis=0))
        difference |= {"difference_low": gap.low, "difference_high": gap.high, "p_bootstrap": gap.p}
    level, metric, _, _ = key
    if (level, metric) == ("image", "auroc"):
        difference["p_delong"] = _delong_p(row.seeds[common[0]].units, reference.seeds[common[0]].units)
    return difference


def _counterpart(reference: RowOfGroup, key: CellKey) -> Cell | None:
    """The same number of the reference; of a row that decides by a threshold, that of the reference's own answers."""
    level, metric, rule, subset = key
    *how, _ = rule.split("/")
    answered = (level, metric, "/".join([*how, "answer"]), subset)
    return reference.cells.get(key) or reference.cells.get(answered)


def _delong_p(ours: RowUnits, theirs: RowUnits) -> float | None:
    """p of the AUROCs of two rows over the same slices."""
    labelled = ours.slices.labelled
    strata = ours.fold[ours.patient[labelled]]
    return delong(ours.score[labelled], theirs.score[labelled], ours.label[labelled] == 1, strata).p

"""The long table with its facts, as something that can be asked for a number.

One decision: "main" is a rule like any other: it stands for the row's own way to decide (the LLM's answer, always, or
else the threshold rule of the experiment), so no printed form chooses among rules by itself.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from medad_core.reproduce.presentation.facts import Facts, GroupFacts
from medad_core.reproduce.schema import ROWS, Row

MAIN = "main"


@dataclass(frozen=True)
class Line:
    """A line of the long table (`schema.TABLE`); NaN is None."""

    row: str
    title: str
    group: str
    level: str
    metric: str
    rule: str
    subset: str
    value: float | None
    sd: float | None
    ci_low: float | None
    ci_high: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    p_bootstrap: float | None
    p_delong: float | None
    n: int | None
    seeds: int | None
    reason: str | None

    @property
    def is_area(self) -> bool:
        """Of the slices of one lesion size alone."""
        return self.subset.startswith("area")


@dataclass(frozen=True)
class Column:
    """A number that rows are compared by. `rule` may be, or end in, `MAIN`; `subset` "" is any but a lesion size."""

    title: str
    level: str
    metric: str
    rule: str = ""
    subset: str = ""
    low_is_better: bool = False

    @property
    def key(self) -> str:
        """Name of the column where it has to be one word."""
        return f"{self.level}_{self.metric}{'_at_0.5' if self.rule == '0.5' else ''}"


@dataclass(frozen=True)
class Sheet:
    """Lines of the table and its facts."""

    lines: tuple[Line, ...]
    facts: Facts

    @classmethod
    def of(cls, table: pa.Table, facts: Facts) -> Sheet:
        """From a table of the schema `TABLE`."""
        rows = (
            {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
            for row in table.to_pylist()
        )
        return cls(tuple(Line(**row) for row in rows), facts)

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows asked for, failed ones too, in the order of the table."""
        return tuple(row for row in ROWS.values() if row.name in self.facts.failed)

    @property
    def groups(self) -> tuple[GroupFacts, ...]:
        """Patients before phantoms."""
        return tuple(sorted(self.facts.groups, key=lambda group: group.name))

    def failed(self, row: str) -> str | None:
        """Why a row failed, on one line; None for one that did not."""
        reason = self.facts.failed[row]
        return None if reason is None else " ".join(reason.split()) or "no reason given"

    def of_row(self, group: str, row: str) -> list[Line]:
        """All lines of a row in a group."""
        return self._by_row.get((group, row), [])

    def find(self, group: str, row: str, column: Column) -> Line | None:
        """The line behind a cell; None where the row has no such number."""
        for rule in self._rules(column.rule):
            wanted = (column.level, column.metric, rule)
            for line in self.of_row(group, row):
                if (line.level, line.metric, line.rule) == wanted and _fits(line, column):
                    return line
        return None

    def best(self, group: str, column: Column) -> float | None:
        """The best value of a column as it is printed, to 3 decimals."""
        lines = (self.find(group, row.name, column) for row in self.rows)
        values = [round(line.value, 3) for line in lines if line and line.value is not None]
        best = min if column.low_is_better else max
        return best(values, default=None)

    def _rules(self, rule: str) -> list[str]:
        if not rule.endswith(MAIN):
            return [rule]
        return [rule.removesuffix(MAIN) + name for name in ("answer", "always", self.facts.rule)]

    @cached_property
    def _by_row(self) -> dict[tuple[str, str], list[Line]]:
        lines: dict[tuple[str, str], list[Line]] = defaultdict(list)
        for line in self.lines:
            lines[line.group, line.row].append(line)
        return dict(lines)


def _fits(line: Line, column: Column) -> bool:
    return line.subset == column.subset if column.subset else not line.is_area


AUROC = Column("image AUROC", "image", "auroc")
BALANCED = Column("balanced accuracy", "image", "balanced_accuracy", MAIN)
# The headline: what the main table, the LaTeX table and the sentences about who beats whom are made of.
HEADLINE = (
    AUROC,
    Column("image AP", "image", "ap"),
    Column("accuracy", "image", "accuracy", MAIN),
    BALANCED,
    Column("calibration error", "image", "ece", low_is_better=True),
    Column("pixel AUROC", "pixel", "auroc"),
)
PIXEL = (
    Column("AUROC", "pixel", "auroc"),
    Column("AP", "pixel", "ap"),
    Column("AUPRO, FPR ≤ 0.3", "pixel", "aupro"),
    Column("Dice, stored threshold", "pixel", "dice", "validation"),
    Column("Dice at 0.5", "pixel", "dice", "0.5"),
)
TEXT = (
    Column("unreadable answers", "text", "unparsed_share", low_is_better=True),
    Column("verdict agrees with the map", "text", "verdict_map_agreement"),
    Column("location exact", "text", "location_exact"),
    Column("exact or neighbouring", "text", "location_exact_or_neighbour"),
    Column("location named without tumour", "text", "hallucinated_location_share", low_is_better=True),
)
DECIDED = (
    ("accuracy", "accuracy"),
    ("balanced_accuracy", "balanced accuracy"),
    ("sensitivity", "sensitivity"),
    ("specificity", "specificity"),
    ("f1", "F1"),
)

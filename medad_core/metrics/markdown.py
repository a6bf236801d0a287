"""`metrics.md`: the metrics table for a reader in a terminal, an editor or a merge request.

One decision: it holds numbers and their definitions, nothing that needs the pictures; those are in the page.
"""

from __future__ import annotations

from collections.abc import Sequence

from medad_core.metrics.names import LEVELS, READING, SUBSETS, metric_name
from medad_core.metrics.table import MetricRow


def render_markdown(rows: Sequence[MetricRow], title: str, notes: Sequence[str] = ()) -> str:
    """The text of `metrics.md`: one section a split, one table a level, then how to read it."""
    parts = [f"# {title}", *notes]
    for split in dict.fromkeys(row.split for row in rows):
        parts.append(f"## {split_title(split)}")
        for level, heading in LEVELS.items():
            chosen = [row for row in rows if (row.split, row.level) == (split, level)]
            if chosen:
                parts += [f"### {heading}", _table(chosen)]
    return "\n\n".join([*parts, "## How to read this", *READING]) + "\n"


def split_title(split: str) -> str:
    """Heading of a split."""
    return "All cases" if split == "all" else f"Split: {split}"


def _table(rows: Sequence[MetricRow]) -> str:
    lines = ["| metric | value | 95 % interval | n | note |", "|---|---:|---:|---:|---|"]
    return "\n".join([*lines, *(_line(row) for row in rows)])


def _line(row: MetricRow) -> str:
    value = "–" if row.value is None else f"{row.value:.3f}"
    between = "–" if row.ci_low is None or row.ci_high is None else f"{row.ci_low:.3f} to {row.ci_high:.3f}"
    subset = f"{row.n:,} {SUBSETS.get(row.subset, row.subset)}".strip()
    note = (row.reason or "").replace("|", "\\|")
    return f"| {metric_name(row.metric)} | {value} | {between} | {subset} | {note} |"

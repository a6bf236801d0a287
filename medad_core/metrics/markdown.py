"""`metrics.md`: the metrics table for a reader in a terminal, an editor or a merge request.

One decision: it holds numbers and their definitions, nothing that needs the pictures; those are in the page.
"""

from __future__ import annotations

from collections.abc import Sequence

from medad_core.media import markdown_text
from medad_core.metrics.names import LEVELS, READING, SUBSETS, metric_name
from medad_core.metrics.printed import interval_text, markdown_table, value_text
from medad_core.metrics.table import PATHOLOGY, MetricRow


def render_markdown(rows: Sequence[MetricRow], title: str, notes: Sequence[str] = ()) -> str:
    """The text of `metrics.md`: one section a split, one table a level, then how to read it."""
    parts = [f"# {markdown_text(title)}", *notes]
    for split in dict.fromkeys(row.split for row in rows):
        parts.append(f"## {markdown_text(split_title(split))}")
        for level, heading in LEVELS.items():
            chosen = [row for row in rows if (row.split, row.level) == (split, level)]
            if chosen:
                parts += [f"### {heading}", _table(chosen)]
    return "\n\n".join([*parts, "## How to read this", *READING]) + "\n"


def split_title(split: str) -> str:
    """Heading of a split, or of a pathology."""
    if split.startswith(PATHOLOGY):
        return f"Pathology: {split.removeprefix(PATHOLOGY)}"
    return "All cases" if split == "all" else f"Split: {split}"


def _table(rows: Sequence[MetricRow]) -> str:
    return markdown_table(["metric", "value", "95 % interval", "n", "supervision", "note"], map(_cells, rows), "lrrrll")


def _cells(row: MetricRow) -> list[str]:
    subset = SUBSETS.get(row.subset, row.subset)
    return [
        metric_name(row.metric),
        value_text(row.value),
        interval_text(row.ci_low, row.ci_high),
        f"{row.n:,} {subset}".strip(),
        markdown_text(row.supervision),
        markdown_text(row.reason or ""),
    ]

"""Tables on the terminal: where a run stands, what it scored, which models there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.table import Table
from rich.text import Text

from medad_core.metrics.names import metric_name
from medad_core.store import Progress

MAIN_METRICS = (
    ("map_auroc", "image"),
    ("p_yes_auroc", "image"),
    ("verdict_balanced_accuracy", "image"),
    ("verdict_accuracy", "image"),
    ("majority_class_accuracy", "image"),
    ("map_auroc", "pixel"),
    ("map_dice", "pixel"),
    ("location_exact", "text"),
    ("unparsed_share", "text"),
)


def status_table(stages: Iterable[tuple[str, Progress | None]]) -> Table:
    """One line a stage; None is a stage that was not planned yet."""
    table = Table("stage", *(Text(name, justify="right") for name in ("parts", "cases", "done", "rejected", "slices", "seconds")), "state")
    for column in table.columns[1:7]:
        column.justify = "right"
    for name, now in stages:
        if now is None:
            table.add_row(name, *[""] * 6, "not started")
            continue
        counts = (f"{now.parts_done} of {now.parts}", now.requested, now.done, now.failed, now.rows, f"{now.seconds:.1f}")
        table.add_row(name, *map(str, counts), "finished" if now.finished else "unfinished")
    return table


def metrics_rows(rows: Iterable[Mapping]) -> Table:
    """The main metrics over all cases with their intervals; the undefined with their reason."""
    found = {(row["metric"], row["level"]): row for row in rows if row["split"] == "all"}
    table = Table("metric", "level", Text("value", justify="right"), "95 % interval", Text("n", justify="right"))
    for key in MAIN_METRICS:
        row = found.get(key)
        if row is None:
            continue
        if row["value"] is None:
            table.add_row(metric_name(key[0]), key[1], "–", row["reason"] or "undefined", str(row["n"]))
            continue
        interval = "–" if row["ci_low"] is None else f"{row['ci_low']:.3f} to {row['ci_high']:.3f}"
        table.add_row(metric_name(key[0]), key[1], f"{row['value']:.3f}", interval, str(row["n"]))
    return table


def models_table(models: Iterable[tuple[str, str, str, str, bool, Path | None]]) -> Table:
    """Name, role, distribution, licence, installed, converted folder of every packaged model."""
    table = Table("name", "role", "from", "licence", "installed", "converted")
    for name, role, source, licence, here, folder in models:
        table.add_row(name, role, source, licence, "yes" if here else "no: make setup", str(folder) if folder else "on first use")
    return table

"""Tables on the terminal: where a run stands, what it scored, which models there are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from medad_core.media import read_csv, visible
from medad_core.store import StageProgress
from medad_core.store.files import read_bytes

if TYPE_CHECKING:
    from flows.cli.inventory import Known, Packaged

FIRST = 10  # cases of a worklist that a terminal shows
PAPER_COLUMNS = (
    ("image", "auroc", "AUROC"),
    ("image", "ap", "AP"),
    ("image", "accuracy", "accuracy"),
    ("image", "balanced_accuracy", "balanced"),
    ("image", "sensitivity", "sens."),
    ("image", "specificity", "spec."),
    ("pixel", "auroc", "pixel AUROC"),
    ("pixel", "aupro", "AUPRO"),
    ("pixel", "dice", "Dice"),
    ("text", "location_exact", "location"),
)


def plain_table(*columns: str) -> Table:
    """A table without frame, whose cells fold rather than lose their end."""
    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    return table


def status_table(stages: Iterable[tuple[str, StageProgress | None]]) -> Table:
    """One line a stage; None is a stage that was not planned yet."""
    table = plain_table("stage", "parts", "cases", "done", "rejected", "slices", "seconds", "state")
    for column in table.columns[1:7]:
        column.justify = "right"
    for name, progress in stages:
        if progress is None:
            table.add_row(name, *[""] * 6, "not started")
            continue
        counts = (progress.requested, progress.done, progress.failed, progress.rows)
        table.add_row(
            name,
            f"{progress.parts_done} of {progress.parts}",
            *map(str, counts),
            f"{progress.seconds:.1f}",
            "finished" if progress.finished else "unfinished",
        )
    return table


def metrics_rows(rows: Iterable[Mapping[str, Any]]) -> Table:
    """The main metrics over all cases with their intervals; the undefined with their reason."""
    from medad_core.metrics.names import MAIN_METRICS, metric_name  # SciPy takes a second
    from medad_core.metrics.printed import interval_text, value_text

    by_name = {(row["metric"], row["level"]): row for row in rows if row["split"] == "all"}
    table = plain_table("metric", "level", "value", "95 % interval", "n", "supervision")
    for key in MAIN_METRICS:
        row = by_name.get(key)
        if row is None:
            continue
        if row["value"] is None:
            interval = row["reason"] or "undefined"
        else:
            interval = interval_text(row["ci_low"], row["ci_high"])
        supervision = row.get("supervision") or "–"
        table.add_row(metric_name(key[0]), key[1], value_text(row["value"]), interval, str(row["n"]), supervision)
    return table


def worklist_table(uri: str, batches: Collection[int] = ()) -> Table | None:
    """The first ten cases of a worklist, of a cohort's those of `batches`; None where it holds none.

    Raises StoreError.
    """
    cases = list(read_csv((read_bytes(uri) or b"").decode("utf-8")))
    if batches:
        cases = [case for case in cases if int(case["batch"]) in batches]
    if not cases:
        return None
    table = plain_table("", "case", "finding", "ml", "side", "slices", "look at", "doubts")
    table.title = f"worklist, {min(FIRST, len(cases))} of {len(cases)} cases"
    table.title_justify = "left"
    for case in cases[:FIRST]:
        volume = f"{'≥ ' if case['is_cut'] == 'True' else ''}{case['volume_ml']}"
        slices = f"{case['slices_yes']} of {case['slices']}"
        cells = (case["place"], case["case_id"], case["finding"], volume, case["side"])
        table.add_row(*map(visible, (*cells, slices, case["look_at"], case["doubts"])))
    return table


def models_table(models: Iterable[Packaged]) -> Table:
    """Name, role, distribution, licence, installed, converted folder of every packaged model."""
    table = plain_table("name", "role", "from", "licence", "installed", "converted")
    for model in models:
        installed = "yes" if model.source else "no: make setup"
        converted = str(model.converted) if model.converted else "on first use"
        table.add_row(model.name, model.role, model.distribution, model.licence, installed, converted)
    return table


def presets_table(presets: Iterable[Known]) -> Table:
    """Name, roles, origin, licence and folder of every preset."""
    table = plain_table("preset", "role", "from", "licence", "on this machine")
    for known in presets:
        preset = known.preset
        source = preset.hub or "its authors"
        folder = str(known.folder) if known.folder else "no"
        table.add_row(preset.name, ", ".join(preset.roles), source, preset.licence, folder)
    return table


def paper_table(lines: Iterable[Mapping[str, Any]], failed: Mapping[str, str], rule: str) -> Iterator[Table]:
    """The main columns of the paper's table, one table a group; decisions by `rule` where a row has thresholds."""
    from medad_core.metrics.printed import value_text  # SciPy takes a second

    rules = ("", rule, "answer", "always", "validation")
    shown = [line for line in lines if line["rule"] in rules and _main(line)]
    by_cell = {(line["group"], line["row"], line["level"], line["metric"]): line for line in shown}
    for group in dict.fromkeys(key[0] for key in by_cell):
        table = plain_table(group, *(title for _, _, title in PAPER_COLUMNS))
        for row in dict.fromkeys(key[1] for key in by_cell if key[0] == group):
            cells = [by_cell.get((group, row, level, metric)) for level, metric, _ in PAPER_COLUMNS]
            values = [cell["value"] if cell is not None else None for cell in cells]
            table.add_row(row, *map(value_text, values))
        for row in failed:
            table.add_row(row, "failed")
        yield table


def _main(line: Mapping[str, Any]) -> bool:
    """Whether a line is of all slices, not of a bin of lesion sizes."""
    return not line["subset"].startswith("area")

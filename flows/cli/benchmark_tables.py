"""What `medad benchmark` shows: one table of what was measured, one of the batch sizes; and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from rich.table import Table

from flows.cli.tables import plain_table
from medad_core.benchmark.bookkeeping import BookkeepingReport
from medad_core.benchmark.duel import DuelReport
from medad_core.benchmark.encode import EncodeReport
from medad_core.benchmark.growth import GrowthReport
from medad_core.benchmark.orchestration import OrchestrationReport
from medad_core.benchmark.profile import Profile
from medad_core.benchmark.sizing import Sizing
from medad_core.benchmark.spread import Spread
from medad_core.benchmark.start_up import StartUpReport

Report = (
    EncodeReport
    | OrchestrationReport
    | BookkeepingReport
    | Profile
    | Sizing
    | DuelReport
    | StartUpReport
    | GrowthReport
)


def report_json(report: Report) -> str:
    """The whole report; rates are a second, times in s, memory in MB, shares of 1."""
    return json.dumps(asdict(report), indent=1) + "\n"


def report_tables(report: EncodeReport) -> Iterator[Table]:
    """The report as a reader wants it: what, the median, from the least to the greatest."""
    table = plain_table(
        f"{report.model} on {report.device}, {report.precision}, torch {report.torch}, {report.threads} CPU threads",
        "median",
        "from, to",
    )
    table.add_row("one slice", f"{report.flops_per_slice / 1e9:.1f} GFLOP", "")
    table.add_row(f"fastest product, {report.gemm_side} square", *_flops(report.gemm_flops_s))
    for variant in report.variants:
        name = f"encoder, {variant.name}, batch {variant.batch_size}"
        table.add_row(name, *_rate(variant.slices_s))
        table.add_row("", *_flops(variant.flops_s))
        table.add_row("  share of the product's FLOP/s", *_share(variant.peak_share))
    table.add_row(f"stage maps, Parquet to Parquet, {report.stage_variant}", *_rate(report.stage_slices_s))
    table.add_row("  share of the product's FLOP/s", f"{report.stage_peak_share:.1%}", "")
    table.add_row(
        "reading alone, page cache warm",
        f"{report.read_slices_s:,.0f} slices/s",
        f"{report.read_bytes_per_slice / 1e3:.1f} kB a slice",
    )
    table.add_row(
        "  busy for so much of the stage's time", f"{report.read_share:.1%}", "beside the device, not before it"
    )
    table.add_row("naive loop", *_rate(report.naive_slices_s))
    table.add_row(
        "  stage, in naive loops",
        f"{report.speed_up.median:.1f} ×",
        f"{report.speed_up.low:.1f}, {report.speed_up.high:.1f}",
    )
    yield table
    sweep = plain_table("encoder at batch", *map(str, report.sweep))
    sweep.add_row("slices/s", *map(_short, report.sweep.values()))
    yield sweep


def orchestration_table(report: OrchestrationReport) -> Table:
    """The report as a reader wants it; what Prefect adds is the median of turns, from the least to the greatest."""
    title = f"stages slices and maps, {report.cases_per_part} cases a part, {report.slices_per_case} slices a case"
    table = plain_table(title, *(f"{size.parts} parts" for size in report.sizes))
    table.add_row("plain loop", *(f"{size.loop_s.median:.1f} s" for size in report.sizes))
    table.add_row("through Prefect", *(f"{size.flows_s.median:.1f} s" for size in report.sizes))
    table.add_row(
        "  it adds",
        *(f"{size.added.median:+.1%} ({size.added.low:+.1%}, {size.added.high:+.1%})" for size in report.sizes),
    )
    table.add_row("  before that, its server", *(f"{size.start_s.median:.1f} s" for size in report.sizes))
    table.add_row("peak memory, plain loop", *(f"{size.loop_mb.median:,.0f} MB" for size in report.sizes))
    table.add_row("peak memory, through Prefect", *(f"{size.flows_mb.median:,.0f} MB" for size in report.sizes))
    table.add_row("  last size beside the one before", *("" for _ in report.sizes[1:]), f"{report.growth:+.1%}")
    return table


def bookkeeping_table(report: BookkeepingReport) -> Table:
    """What a run costs beside its work: medians, from the least to the greatest; growth of 1 is linear."""
    table = plain_table("bookkeeping of a run", *(f"{size.cases:,} cases" for size in report.sizes), "growth")
    growth = {name: f"{ratio:.2f}" for name, ratio in report.growth.items()}
    table.add_row("parts", *(f"{size.parts:,}" for size in report.sizes), "")
    table.add_row("status", *(_seconds(size.status_s) for size in report.sizes), growth["status"])
    table.add_row("  its peak memory", *(f"{size.status_mb.median:,.0f} MB" for size in report.sizes), "")
    table.add_row("walk through DATA", *(_seconds(size.discover_s) for size in report.sizes), growth["discover"])
    table.add_row("open a finished run", *(_seconds(size.open_s) for size in report.sizes), growth["open"])
    table.add_row("  of it, hashing its parts", *(_seconds(size.hash_s) for size in report.sizes), "")
    table.add_row("read one case", *(f"{size.read_case_ms.median:.2f} ms" for size in report.sizes), "")
    return table


def growth_table(report: GrowthReport) -> Table:
    """Milliseconds a slice by stage, and memory; growth is the last size in the first."""
    title = f"{report.date}, commit {report.commit}, {report.device}"
    table = plain_table(title, *(f"{size.cases:,} cases" for size in report.sizes), "growth")
    for name in report.sizes[0].slice_ms:
        table.add_row(f"{name}, ms a slice", *(f"{size.slice_ms[name]:.2f}" for size in report.sizes), "")
    table.add_row("all, ms a slice", *(f"{size.all_ms:.1f}" for size in report.sizes), f"{report.time_growth:.2f}")
    table.add_row("models' start, once", *(f"{size.start_s:.1f} s" for size in report.sizes), "")
    table.add_row("peak memory", *(f"{size.peak_mb:,.0f} MB" for size in report.sizes), f"{report.memory_growth:.2f}")
    return table


def start_up_table(report: StartUpReport) -> Table:
    """Medians, from the least to the greatest."""
    table = plain_table(f"{report.cases} cases; {report.date}, commit {report.commit}, {report.device}", "median")
    for name, spread in report.seconds.items():
        table.add_row(name, _seconds(spread))
    return table


def _seconds(spread: Spread) -> str:
    return f"{spread.median:.2f} s ({spread.low:.2f}, {spread.high:.2f})"


def _rate(spread: Spread) -> tuple[str, str]:
    return f"{_short(spread.median)} slices/s", f"{_short(spread.low)}, {_short(spread.high)}"


def _short(rate: float) -> str:
    """A large ViT on a CPU takes seconds a slice."""
    return f"{rate:,.1f}" if rate >= 10 else f"{rate:.2f}"


def _flops(spread: Spread) -> tuple[str, str]:
    return f"{spread.median / 1e12:,.3f} TFLOP/s", f"{spread.low / 1e12:,.3f}, {spread.high / 1e12:,.3f}"


def _share(spread: Spread) -> tuple[str, str]:
    return f"{spread.median:.1%}", f"{spread.low:.1%}, {spread.high:.1%}"

"""What `medad plan` and `medad benchmark stages` show: costs and rates of every stage, and what is paid for."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from flows.cli.tables import plain_table
from medad_core.benchmark.profile import Profile
from medad_core.benchmark.sizing import Sizing

UNITS = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
UNKNOWN = "–"


def profile_table(profile: Profile) -> Table:
    """The rates of one worker."""
    table = _right(
        plain_table(f"one worker, {_where(profile)}", "slices/s", "parts, from, to", "a slice", "start-up", "roofline")
    )
    for name, cost in profile.stages.items():
        spread = cost.part_slice_s
        share = UNKNOWN if cost.roofline is None else f"{cost.roofline.least_s / cost.slice_s:.0%}"
        rates = (_number(1 / cost.slice_s), f"{_number(1 / spread.high)}, {_number(1 / spread.low)}")
        table.add_row(name, *rates, _bytes(cost.slice_bytes), _seconds(cost.start_s), share)
    if profile.evaluation is not None:
        each = profile.evaluation
        table.add_row("evaluate", f"{each.case_s:.3f} s a case", "", "", _seconds(each.fixed_s), UNKNOWN)
    return table


def sizing_tables(profile: Profile, sizing: Sizing) -> Iterator[Table | str]:
    """Stages, then what is paid for, then what is not included."""
    title = f"{sizing.cases:,} cases, {sizing.slices:,} slices"
    table = _right(plain_table(title, "workers", "hours", "", "stored", "roofline", "of it"))
    for stage in sizing.stages:
        table.add_row(
            stage.stage,
            f"{stage.workers:,}",
            _hours(stage.hours),
            f"{stage.hours / sizing.hours:.0%}{' binds' if stage.stage == sizing.binds else ''}",
            _bytes(stage.stored_bytes) if stage.stored_bytes else "",
            UNKNOWN if stage.roofline_hours is None else _hours(stage.roofline_hours),
            UNKNOWN if stage.roofline_share is None else f"{stage.roofline_share:.0%}",
        )
    table.add_row("all", "", _hours(sizing.hours), "", "", "", "")
    yield table
    drivers = _right(plain_table("what is paid for", ""))
    for name, value in _drivers(sizing):
        drivers.add_row(name, value)
    yield drivers
    yield f"measured with {_where(profile)}; assumed: all grows with the slices"
    yield from (f"not included: {text}" for text in sizing.not_included)


def _drivers(sizing: Sizing) -> Iterator[tuple[str, str]]:
    if sizing.gpu_hours is not None:
        yield "GPU hours", f"{sizing.gpu_hours:,.1f}"
    yield "worker hours (CPU)", f"{sizing.worker_hours:,.1f}"
    yield "storage, with results", _bytes(sizing.stored_bytes)
    yield "volumes and masks read", _bytes(sizing.volume_bytes)
    yield "answers", f"{sizing.answers:,}"
    yield "tokens of prompts", f"{sizing.prompt_tokens:,}"
    yield "tokens of answers", f"{sizing.answer_tokens:,}"
    if sizing.bucket_bytes is not None:
        yield "read of a bucket", _bytes(sizing.bucket_bytes)
    for kind, count in sorted((sizing.requests or {}).items()):
        yield f"  requests, {kind}", f"{count:,}"


def _where(profile: Profile) -> str:
    cases = f"{profile.cases:,} cases"
    if profile.device is None:
        return f"{cases} of a run"
    return f"{cases} on {profile.device}, {profile.cores} cores, {profile.measured}"


def _right(table: Table) -> Table:
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _bytes(count: float) -> str:
    for size, unit in UNITS:
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:,.0f} B"


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 1 else f"{hours:.4f}"


def _seconds(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else f"{seconds:.1f} s"


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.2f}"

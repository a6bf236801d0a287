"""Measurements with peers, on the terminal and in Markdown.

One decision: both have the same rows, and the Markdown is made from the JSON of a measurement, so no number is copied
by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import TypeAdapter, ValidationError
from rich.table import Table

from flows.cli.tables import plain_table
from medad_core.benchmark.duel import DuelReport, Fact, Pairing
from medad_core.benchmark.spread import Spread
from medad_core.errors import UsageError
from medad_core.store.files import read_bytes

_HEAD = ("work", "beside", "times as long as medad (pairs)", "it", "medad", "what it is")


def read_report(uri: str) -> DuelReport:
    """The report that `--json` wrote. Raises UsageError for another file."""
    content = read_bytes(uri)
    try:
        return TypeAdapter(DuelReport).validate_json(content or b"")
    except ValidationError as error:
        raise UsageError(
            f"{uri} is no report of a measurement with peers; `medad benchmark read DATA --json FILE` writes one"
        ) from error


def duel_tables(report: DuelReport) -> Iterator[Table]:
    """Peers and floors; then other numbers; then the peers that are not installed."""
    table = plain_table(f"{report.work}: {report.given}", *_HEAD[2:])
    for pairing in report.pairings:
        table.add_row(*_cells(pairing))
    table.caption = _caption(report)
    table.caption_justify = "left"
    yield table
    facts = plain_table("also measured", "")
    for fact in report.facts:
        facts.add_row(fact.name, _fact(fact))
    yield facts
    if report.missing:
        missing = plain_table("not measured")
        for hint in report.missing:
            missing.add_row(hint)
        yield missing


def duel_markdown(reports: Sequence[DuelReport]) -> Iterator[str]:
    """The lines of one table of all reports, and a line of each about where it was measured."""
    yield f"| {' | '.join(_HEAD)} |"
    yield "|---" * len(_HEAD) + "|"
    for report in reports:
        for pairing in report.pairings:
            yield f"| {' | '.join((report.work, *_cells(pairing)))} |"
    yield ""
    for report in reports:
        facts = "; ".join(f"{fact.name} {_fact(fact)}" for fact in report.facts)
        yield f"* **{report.work}**: {report.given}. {_caption(report)}. {facts[:1].upper()}{facts[1:]}."


def _cells(pairing: Pairing) -> tuple[str, ...]:
    versions = ", ".join(f"{package} {version}" for package, version in pairing.versions.items())
    name = f"{pairing.name} (a floor)" if pairing.is_floor else pairing.name
    ratio = f"{pairing.ratio:.2f} ({pairing.ratios.low:.2f} to {pairing.ratios.high:.2f})"
    what = f"{pairing.what} ({versions})" if versions else pairing.what
    return name, ratio, _seconds(pairing.theirs_s), _seconds(pairing.ours_s), what


def _caption(report: DuelReport) -> str:
    pairs = max((pairing.ratios.n for pairing in report.pairings), default=0)
    return f"{report.date}, commit {report.commit}, {report.device}, {report.threads} threads, {pairs} pairs"


def _seconds(spread: Spread) -> str:
    return f"{spread.median:.3g} s"


def _fact(fact: Fact) -> str:
    value = f"{fact.value:,.0f}" if fact.value >= 1000 or fact.value == int(fact.value) else f"{fact.value:.3g}"
    return f"{value} {fact.unit}".strip()

"""`medad train` and `medad reproduce`: what they check, run and print."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.command import FAILED, OK, SOME_REJECTED, Consoles, consoles
from flows.cli.options import Config, Words, absolute

if TYPE_CHECKING:
    from medad_core.config import Settings
    from tasks.reproduce import Reproduced
    from tasks.whole import Trained


def train(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Folder of labelled cases.")],
    out: Annotated[str, typer.Option("--out", metavar="WEIGHTS", help="Folder for weights and card.")],
    words: Words = None,
    config: Config = None,
    licence: Annotated[str, typer.Option("--licence", help="Licence of the data, for the card.")] = "not stated",
    limits: Annotated[
        str, typer.Option("--limits", help="What a reader of results must know first, for the card and every page.")
    ] = "",
) -> int:
    """Train decoder and converter on labelled cases; the same command again resumes."""
    from medad_core.config import load_settings

    settings = load_settings(config, words or [])
    out = absolute(out)
    terminals = consoles(online=not settings.models.offline, mode=settings.store.mode)
    from flows.preflight import check_training

    _check(data, out, settings, terminals, lambda: check_training(settings))
    from flows.cli.progress import following
    from flows.train import train as train_flow

    with following("tasks.whole", terminals.err):
        trained = train_flow(absolute(data), out, settings, licence, limits)
    return _report_trained(trained, terminals)


def _check(data: str, out: str, settings: Settings, terminals: Consoles, check: Callable[[], None]) -> None:
    """Check the two folders, then what `check` does; start a server for the flow if none is configured."""
    from medad_core.data.own_folders import claim_folder, mark_folder
    from medad_core.data.source import check_data, find_cases
    from medad_core.data.table import dataset_root
    from medad_core.store import check_writable
    from medad_core.store.lock import check_unheld

    check_unheld(out)
    check_data(data, settings.data)
    claim_folder(dataset_root(data), out)
    find_cases(data, settings.data)
    check_writable(out)
    mark_folder(out)
    with terminals.err.status("checking models and settings"):
        from flows.cli.server import start_temporary_server

        check()
        start_temporary_server()


def _report_trained(trained: Trained, terminals: Consoles) -> int:
    for part, scores in trained.scores.items():
        nested = {f"{part}, {name}": own for name, own in scores.items() if isinstance(own, dict)}
        for title, own in (nested or {part: scores}).items():
            numbers = [f"{name} {_number(value)}" for name, value in own.items()]
            terminals.out.print(f"{title}: {', '.join(numbers)}")
    terminals.out.print(f"weights and card: {trained.folder}", soft_wrap=True)
    for case_id, reason in trained.rejected:
        terminals.err.print(f"medad: {case_id} was left out: {reason}", soft_wrap=True)
    return SOME_REJECTED if trained.rejected else OK


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def reproduce(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Folder of labelled cases, of phantoms, or of both.")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for the table and what it is made of.")],
    words: Words = None,
    config: Config = None,
) -> int:
    """Make the paper's table on DATA: every row trained and scored on the same patients; run it again to resume."""
    from medad_core.config import load_settings

    settings = load_settings(config, words or [])
    out = absolute(out)
    terminals = consoles(online=not settings.models.offline, mode=settings.store.mode)
    from flows.preflight import check_reproducing

    _check(data, out, settings, terminals, lambda: check_reproducing(out, settings))
    from flows.cli.progress import following
    from flows.reproduce import RowsFailed
    from flows.reproduce import reproduce as reproduce_flow

    with following("tasks.reproduce", terminals.err, keep=("cases", "units", "table")):
        try:
            made = reproduce_flow(absolute(data), out, settings)
        except RowsFailed as failed:
            made = failed.made
    return _report_reproduced(made, settings.reproduce.rule, terminals)


def _report_reproduced(made: Reproduced, rule: str, terminals: Consoles) -> int:
    from flows.cli.tables import paper_table
    from medad_core.store import read_table

    out, err = terminals
    for table in paper_table(read_table(made.table).to_pylist(), dict(made.failed), rule):
        out.print(table)
    for name, uri in (("table", made.text), ("figure", made.figure), ("errors", made.gallery)):
        out.print(f"{name:<8} {uri}", soft_wrap=True)
    for case_id, reason in made.rejected:
        err.print(f"medad: {case_id} was left out: {reason}", soft_wrap=True)
    for row, reason in made.failed:
        err.print(f"medad: row {row} failed: {reason}", soft_wrap=True)
    if made.failed:
        return FAILED
    return SOME_REJECTED if made.rejected else OK

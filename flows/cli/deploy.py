"""`medad deploy`: what runs by itself, and when, on a Prefect server."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.command import Consoles, consoles
from flows.cli.options import absolute
from medad_core.errors import UsageError

if TYPE_CHECKING:
    from flows.deployments import Entry
    from flows.standing import Standing
    from medad_core.config import Settings

INBOX_HELP = "Folder that studies come into, as the worker sees it."
COHORT_HELP = "Folder of the cohort that is screened nightly."
CRON_HELP = 'When the cohort is screened, such as "0 2 * * *", instead of the time in the file.'
TIMEZONE_HELP = "Of all schedules, such as Europe/Berlin; else UTC."
POOL_HELP = "Work pool of every deployment, such as medad-gpu, instead of those in the file."
FILE_HELP = "Deployments other than configs/deploy/prefect.yaml."


def deploy(
    inbox: Annotated[str | None, typer.Option("--inbox", metavar="INBOX", help=INBOX_HELP)] = None,
    cohort: Annotated[str | None, typer.Option("--cohort", metavar="FOLDER", help=COHORT_HELP)] = None,
    cron: Annotated[str | None, typer.Option("--cron", help=CRON_HELP)] = None,
    timezone: Annotated[str | None, typer.Option("--timezone", help=TIMEZONE_HELP)] = None,
    pool: Annotated[str | None, typer.Option("--pool", metavar="POOL", help=POOL_HELP)] = None,
    file: Annotated[Path | None, typer.Option("--file", metavar="FILE", help=FILE_HELP)] = None,
    words: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings of the runs.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")] = None,
) -> None:
    """Register deployments and their schedules on the Prefect server of PREFECT_API_URL.

    Lists what is deployed there, and what is orphaned.
    """
    if (inbox is None) != (cohort is None):
        raise UsageError("--inbox and --cohort go together: what comes into the one is screened into the other")
    settings = _settings_of_runs(config, words or [])
    if inbox is not None and cohort is not None:
        _set_variables(inbox, cohort)
    terminals = consoles()
    with terminals.err.status("registering"):
        from importlib.metadata import version

        from prefect import get_client

        from flows.deployments import FILE, read_entries, register
        from flows.orchestrator import check_orchestration, server_url
        from flows.standing import standing
        from medad_core.config import Settings

        if server_url() is None:
            raise UsageError(
                "PREFECT_API_URL is not set: start a server with `medad serve`, "
                "then export PREFECT_API_URL=http://127.0.0.1:4200/api"
            )
        check_orchestration(Settings())
        entries = read_entries(file or FILE, pool=pool, cron=cron, timezone=timezone)
        with get_client(sync_client=True) as client:
            register(client, entries, version("medad"), settings)
            rows = standing(client, entries, file or FILE)
    _show(rows, entries, terminals)


def _set_variables(inbox: str, cohort: str) -> None:
    """What the file's templates read, in this process's environment."""
    folder = absolute(cohort).rstrip("/")
    os.environ.update(MEDAD_INBOX=absolute(inbox), MEDAD_COHORT=folder, MEDAD_COHORT_NAME=folder.rsplit("/", 1)[-1])


def _settings_of_runs(config: Path | None, words: Sequence[str]) -> Settings | None:
    """The settings of the command, else those of MEDAD_SETTINGS (YAML), else none: the runs have the defaults."""
    from medad_core.config import load_settings, settings_from_yaml

    text = os.environ.get("MEDAD_SETTINGS")
    if config is not None or words:
        settings = load_settings(config, words)
    elif text:
        settings = settings_from_yaml(text)
    else:
        return None
    if settings.notify.webhook is not None:
        raise UsageError(
            "notify.webhook: deployments keep no secrets; set MEDAD_WEBHOOK where the worker is started, "
            "such as: MEDAD_WEBHOOK=… medad serve"
        )
    return _for_workers(settings)


def _for_workers(settings: Settings) -> Settings:
    """Relative folders made absolute: a worker has another working folder.

    What may be a name as well is a folder where it is written as one.
    """
    folders = {"weights": False, "folder": False, "encoder": True, "text_encoder": True}
    models = {key: _absolute(getattr(settings.models, key), may_be_name) for key, may_be_name in folders.items()}
    llm = {"model": _absolute(settings.llm.model, True), "lora": _absolute(settings.llm.lora, False)}
    return settings.model_copy(
        update={"models": settings.models.model_copy(update=models), "llm": settings.llm.model_copy(update=llm)}
    )


def _absolute(text: str | None, may_be_name: bool) -> str | None:
    if text is None or (may_be_name and "/" not in text) or not Path(text).expanduser().exists():
        return text
    return str(Path(text).expanduser().absolute())


def _show(rows: Sequence[Standing], entries: Sequence[Entry], terminals: Consoles) -> None:
    from flows.cli.tables import plain_table

    table = plain_table("deployment", "work pool", "schedule", "next run")
    for row in rows:
        table.add_row(row.name, row.pool or "–", row.schedule or "–", row.next_run)
    terminals.out.print(table)
    for row in rows:
        for remark in row.remarks:
            terminals.err.print(f"medad: {row.name}: {remark}", soft_wrap=True)
    for entry in entries:
        if entry.missing:
            missing = ", ".join(entry.missing)
            terminals.err.print(
                f"medad: {entry.pattern} is not registered now: {missing} not given (--inbox and --cohort)",
                soft_wrap=True,
            )

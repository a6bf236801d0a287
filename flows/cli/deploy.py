"""`medad deploy`: what runs by itself, and when, on a Prefect server."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.command import consoles
from medad_core.config import Settings
from medad_core.errors import UsageError


def deploy(
    inbox: Annotated[
        str | None,
        typer.Option("--inbox", metavar="INBOX", help="Folder that studies come into, as the worker sees it."),
    ] = None,
    cohort: Annotated[
        str | None, typer.Option("--cohort", metavar="FOLDER", help="Folder of the cohort that is screened nightly.")
    ] = None,
    cron: Annotated[
        str | None, typer.Option("--cron", help='When, such as "0 2 * * *", instead of the time in the file.')
    ] = None,
    timezone: Annotated[
        str | None, typer.Option("--timezone", help="Of --cron, such as Europe/Berlin; else UTC.")
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(
            "--pool",
            metavar="POOL",
            help="Work pool of every deployment, such as medad-gpu, instead of those in the file.",
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="Deployments other than configs/deploy/prefect.yaml.")
    ] = None,
    words: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings of the runs.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")] = None,
) -> None:
    """Register deployments and their schedules on the Prefect server of PREFECT_API_URL; list them, and what is orphaned there."""
    if (inbox is None) != (cohort is None):
        raise UsageError("--inbox and --cohort go together: what comes into the one is screened into the other")
    _set_variables(inbox, cohort, config, words or [])
    stdout, stderr = consoles()
    with stderr.status("registering"):
        from importlib.metadata import version

        from prefect import get_client

        from flows.deployments import FILE, read_entries, register, standing
        from flows.preflight import check_orchestration
        from flows.runner import server_url

        if server_url() is None:
            raise UsageError(
                "PREFECT_API_URL is not set: start a server with `medad serve`, then export PREFECT_API_URL=http://127.0.0.1:4200/api"
            )
        check_orchestration(Settings())
        entries = read_entries(file or FILE, pool=pool, cron=cron, timezone=timezone)
        with get_client(sync_client=True) as client:
            register(client, entries, version("medad"))
            rows = standing(client, entries, file or FILE)
    _show(rows, entries, stdout, stderr)


def _set_variables(inbox: str | None, cohort: str | None, config: Path | None, words: Sequence[str]) -> None:
    """What the file's templates read, in this process's environment."""
    from medad_core.config import load_settings, settings_from_yaml, settings_to_yaml

    if cohort is not None:
        folder = Path(cohort).expanduser().absolute()
        os.environ.update(
            MEDAD_INBOX=str(Path(inbox).expanduser().absolute()),
            MEDAD_COHORT=str(folder),
            MEDAD_COHORT_NAME=folder.name,
        )
    if config is not None or words or os.environ.get("MEDAD_SETTINGS"):
        settings = (
            load_settings(config, words)
            if config is not None or words
            else settings_from_yaml(os.environ["MEDAD_SETTINGS"])
        )
        if settings.notify.webhook is not None:
            raise UsageError(
                "notify.webhook: deployments keep no secrets; set MEDAD_WEBHOOK where the worker is started, such as: MEDAD_WEBHOOK=… medad serve"
            )
        os.environ["MEDAD_SETTINGS"] = settings_to_yaml(_for_workers(settings))


def _for_workers(settings: Settings) -> Settings:
    """Relative folders made absolute: a worker has another working folder. What may be a name as well is a folder where it is written as one."""
    models = {
        key: _absolute(getattr(settings.models, key), name)
        for key, name in (("weights", False), ("folder", False), ("encoder", True), ("text_encoder", True))
    }
    llm = {key: _absolute(getattr(settings.llm, key), name) for key, name in (("model", True), ("lora", False))}
    return settings.model_copy(
        update={"models": settings.models.model_copy(update=models), "llm": settings.llm.model_copy(update=llm)}
    )


def _absolute(text: str | None, name: bool) -> str | None:
    if text is None or (name and "/" not in text) or not Path(text).expanduser().exists():
        return text
    return str(Path(text).expanduser().absolute())


def _show(rows, entries, stdout, stderr) -> None:
    from flows.cli.tables import plain_table

    table = plain_table("deployment", "work pool", "schedule", "next run")
    for row in rows:
        table.add_row(row.name, row.pool or "–", row.schedule or "–", row.next_run)
    stdout.print(table)
    for row in rows:
        for remark in row.remarks:
            stderr.print(f"medad: {row.name}: {remark}", soft_wrap=True)
    for entry in entries:
        if entry.missing:
            stderr.print(
                f"medad: {entry.pattern} is not registered now: {', '.join(entry.missing)} not given (--inbox and --cohort)",
                soft_wrap=True,
            )

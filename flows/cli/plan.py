"""`medad plan`: what a cohort will take, from rates that were measured."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.command import consoles
from flows.cli.options import Json, absolute
from medad_core.errors import UsageError

PROFILE_HELP = "What `medad benchmark stages --json FILE` wrote, or a finished RUN."
WORKERS_HELP = "Processes of slices, and of all stages without --gpus; by default one a GPU, or one."


def plan(
    cases: Annotated[int, typer.Option("--cases", min=1, help="How many cases.")],
    profile: Annotated[str | None, typer.Option("--profile", metavar="FILE|RUN", help=PROFILE_HELP)] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="GPUs of maps, prompts and answers.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help=WORKERS_HELP)] = None,
    json: Json = None,
) -> None:
    """Hours, storage, tokens, network and requests of a cohort, from measured rates; which stage binds."""
    if profile is None:
        raise UsageError(
            "--profile is missing: medad guesses no rates. On the machine that is to work, "
            "`medad benchmark stages DATA --json rates.json` measures them; a finished RUN will do too"
        )
    terminals = consoles()
    with terminals.err.status("reading the profile"):
        from flows.cli.plan_tables import sizing_tables
        from medad_core.benchmark.profile import load_profile
        from medad_core.benchmark.sizing import size_cohort

        measured = load_profile(profile)
        sizing = size_cohort(measured, cases, gpus, workers)
    for shown in sizing_tables(measured, sizing):
        terminals.out.print(shown)
    if json is not None:
        from flows.cli.benchmark_tables import report_json
        from medad_core.store import write_text

        write_text(absolute(str(json)), report_json(sizing))
        terminals.out.print(f"report {json}", soft_wrap=True)

"""`medad`: the command line.

One decision: everything heavy is imported inside the commands, so that `medad --help` answers at once. The exit codes
are in `flows.cli.command`.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from flows.cli.ask import ask
from flows.cli.benchmarks import benchmarks
from flows.cli.command import command, complain, group, show_tracebacks
from flows.cli.deploy import deploy
from flows.cli.export import export
from flows.cli.figure import figure
from flows.cli.inspect import inspect
from flows.cli.maintenance import doctor, phantom, prune, pseudonyms, status
from flows.cli.models import models_app
from flows.cli.plan import plan
from flows.cli.report import report
from flows.cli.screening import evaluate, screen
from flows.cli.serve import serve
from flows.cli.streams import make_output_safe
from flows.cli.training import reproduce, train
from medad_core.surroundings.processes import clean_environment
from medad_core.surroundings.proxies import settle_proxies

app = group(
    name="medad",
    help="Screen cohorts of brain MRI for anomalies: maps, sentences and metrics. For research; not a medical device.",
    no_args_is_help=True,
)
register = command(app)
for function in (
    screen,
    evaluate,
    export,
    figure,
    report,
    ask,
    inspect,
    train,
    reproduce,
    phantom,
    status,
    plan,
    prune,
    pseudonyms,
    serve,
    deploy,
    doctor,
):
    register(function)
app.add_typer(models_app, name="models")
app.add_typer(benchmarks, name="benchmark")


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and everything that is logged.")] = False,
) -> None:
    show_tracebacks(debug)
    clean_environment()
    for fault in settle_proxies(os.environ.get("PREFECT_API_URL")):
        complain(fault)


def main() -> None:
    """Run the command that the words of this process name; `flows.cli.start` is the entry point."""
    make_output_safe()
    app()

"""`medad`: the command line.

One decision: everything heavy is imported inside the commands, so that `medad --help` answers at once. The exit codes
are in `flows.cli.command`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.benchmarks import benchmarks
from flows.cli.command import command, group, show_tracebacks
from flows.cli.deploy import deploy
from flows.cli.inspect import inspect
from flows.cli.maintenance import doctor, phantom, prune, status
from flows.cli.models import models_app
from flows.cli.screening import evaluate, screen
from flows.cli.serve import serve
from flows.cli.training import reproduce, train

app = group(
    name="medad",
    help="Screen cohorts of brain MRI for anomalies: maps, sentences and metrics. For research; not a medical device.",
    no_args_is_help=True,
)
register = command(app)
for function in (screen, evaluate, inspect, train, reproduce, phantom, status, prune, serve, deploy, doctor):
    register(function)
app.add_typer(models_app, name="models")
app.add_typer(benchmarks, name="benchmark")


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and everything that is logged.")] = False,
) -> None:
    show_tracebacks(debug)


def main() -> None:
    """Entry point of the `medad` script."""
    app()

"""`medad`: the command line.

One decision: everything heavy is imported inside the commands, so that `medad --help` answers at once. Exit codes are in
`flows.cli.command`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.command import FAILED, OK, SOME_REJECTED, command, consoles, group, show_tracebacks
from flows.cli.deploy import deploy
from flows.cli.models import models_app
from flows.cli.serve import serve
from medad_core.errors import ConfigError, UsageError

app = group(
    name="medad",
    help="Screen cohorts of brain MRI for anomalies: maps, sentences and metrics. For research; not a medical device.",
    no_args_is_help=True,
)
_command = command(app)
benchmarks = group(help="Measure how fast this machine is, beside what it could be.", no_args_is_help=True)
app.add_typer(benchmarks, name="benchmark")

Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings; configs/default.yaml shows all.")]
Words = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings, such as data.first_slice=70.")
]
Run = Annotated[str, typer.Argument(metavar="RUN", help="Folder or URI of a run.")]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and everything that is logged.")] = False,
) -> None:
    show_tracebacks(debug)


def _absolute(uri: str) -> str:
    """A local path made absolute, because workers may have another working folder; other URIs as they are."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


@_command
def screen(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Folder of cases: BraTS, MSD, or one flat folder. With --cohort an inbox, into which they come.",
        ),
    ],
    out: Annotated[
        str | None, typer.Option("--out", metavar="RUN", help="Folder or URI for the results of every case of DATA.")
    ] = None,
    cohort: Annotated[
        str | None,
        typer.Option(
            "--cohort",
            metavar="FOLDER",
            help="Folder of a cohort: only what is new or changed in DATA is screened, as its next batch.",
        ),
    ] = None,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="With --cohort: wait for another command that screens it, instead of giving up."),
    ] = False,
    words: Words = None,
    config: Config = None,
) -> int:
    """Screen every case below DATA, or what is new there; the same command again resumes."""
    from medad_core.config import load_settings, settings_to_yaml
    from medad_core.notify import keep_webhook

    if (out is None) == (cohort is None):
        raise UsageError("give --out RUN to screen all of DATA, or --cohort FOLDER to screen what is new in it")
    if wait and cohort is None:
        raise UsageError("--wait goes with --cohort")
    settings, folder, data = load_settings(config, words or []), _absolute(out or cohort), _absolute(data)
    keep_webhook(settings.notify)
    stdout, stderr = consoles(online=not settings.models.offline)
    from flows.cli.progress import watching

    if cohort is not None:
        with stderr.status("checking inbox, models and settings"):
            from flows.cli.server import start_temporary_server
            from flows.cohort import screen_cohort
            from flows.preflight import check_cohort
            from medad_core.inbox.folder import CohortFolder

            check_cohort(data, folder, settings, wait)
            start_temporary_server()
        with watching(CohortFolder(folder).open_run, stderr):
            outcome = screen_cohort(data, folder, settings_to_yaml(settings), wait)
        return _tell_cohort(outcome, stdout, stderr)
    with stderr.status("checking data, models and settings"):
        from flows.cli.server import start_temporary_server
        from flows.preflight import check_screening
        from flows.screen import screen as screen_flow

        check_screening(data, folder, settings)
        start_temporary_server()
    with watching(lambda: folder, stderr):
        outcome = screen_flow(data, folder, settings_to_yaml(settings))
    return _tell(outcome, stdout, stderr)


def _tell_cohort(outcome, stdout, stderr) -> int:
    for batch in outcome.batches:
        stdout.print(
            f"batch {batch.batch}: {batch.screened} cases screened, {batch.slices} slices; {batch.rejected} rejected"
        )
        stdout.print(f"{'page':<12} {batch.page}", soft_wrap=True)
        if batch.changed:
            stderr.print(
                f"medad: {batch.changed} cases changed while they were screened; the next command screens them as they are now",
                soft_wrap=True,
            )
    if not outcome.batches:
        stdout.print("nothing new")
    stdout.print(
        f"{'predictions':<12} {outcome.predictions}" if outcome.slices else "no predictions yet", soft_wrap=True
    )
    stdout.print(
        f"{outcome.slices} slices of {outcome.cases} cases in the cohort; {len(outcome.waiting)} studies wait, {len(outcome.unusable)} cannot be used"
    )
    for case_id, reason in outcome.waiting.items():
        stderr.print(f"medad: {case_id} waits: {reason}", soft_wrap=True)
    for case_id, reason in outcome.unusable.items():
        stderr.print(f"medad: {case_id} cannot be used: {reason}", soft_wrap=True)
    for batch in outcome.batches:
        if batch.rejected:
            stderr.print(
                f"medad: {batch.rejected} cases of batch {batch.batch} were rejected; {Path(batch.page).parent / 'rejected.csv'} says why",
                soft_wrap=True,
            )
    return SOME_REJECTED if outcome.unusable or any(batch.rejected for batch in outcome.batches) else OK


@_command
def evaluate(run: Run, words: Words = None) -> int:
    """Make predictions, metrics and page of a finished RUN again; key=value of `evaluate` may change."""
    from medad_core.config import load_settings, settings_from_yaml, settings_to_yaml
    from medad_core.store import read_run_info

    run, words = _absolute(run), words or []
    load_settings(None, words)
    foreign = [word for word in words if not word.startswith("evaluate.")]
    if foreign:
        raise ConfigError(
            f"{foreign[0]}: only evaluate.* can change in a finished run; screen again with another --out for the rest"
        )
    settings = settings_from_yaml(read_run_info(run).settings)
    changed = load_settings(None, [f"evaluate={settings.evaluate.model_dump_json()}", *words]).evaluate
    stdout, stderr = consoles()
    with stderr.status("evaluating"):
        from flows.cli.server import start_temporary_server
        from flows.preflight import check_orchestration
        from flows.stages import evaluate as evaluate_flow

        check_orchestration(settings)
        start_temporary_server()
        outcome = evaluate_flow(run, settings_to_yaml(settings.model_copy(update={"evaluate": changed})))
    return _tell(outcome, stdout, stderr)


def _tell(outcome, stdout, stderr) -> int:
    from flows.cli.tables import metrics_rows
    from medad_core.store import join, read_table

    run = outcome.predictions.rsplit("/", 1)[0]
    stdout.print(metrics_rows(read_table(join(run, "metrics.parquet")).to_pylist()))
    for name, uri in (("predictions", outcome.predictions), ("metrics", outcome.metrics), ("page", outcome.page)):
        stdout.print(f"{name:<12} {uri}", soft_wrap=True)
    stdout.print(f"{outcome.slices} slices of {outcome.cases} cases; {len(outcome.rejected)} cases rejected")
    if not outcome.rejected:
        return OK
    stderr.print(
        f"medad: {len(outcome.rejected)} cases could not be used; {join(run, 'rejected.csv')} says why", soft_wrap=True
    )
    return SOME_REJECTED if outcome.cases else FAILED


@_command
def train(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Folder of labelled cases.")],
    out: Annotated[str, typer.Option("--out", metavar="WEIGHTS", help="Folder for weights and card.")],
    words: Words = None,
    config: Config = None,
    licence: Annotated[str, typer.Option("--licence", help="Licence of the data, for the card.")] = "not stated",
) -> int:
    """Train decoder and converter on labelled cases; the same command again resumes."""
    from medad_core.config import load_settings, settings_to_yaml
    from medad_core.store import check_writable

    settings, out = load_settings(config, words or []), _absolute(out)
    stdout, stderr = consoles(online=not settings.models.offline)
    from flows.cli.progress import following
    from medad_core.data.cases import discover

    discover(data, settings.data.modality)
    check_writable(out)
    with stderr.status("checking models and settings"):
        from flows.cli.server import start_temporary_server
        from flows.preflight import check_training
        from flows.train import train as train_flow

        check_training(settings)
        start_temporary_server()
    with following("tasks.whole", stderr):
        trained = train_flow(_absolute(data), out, settings_to_yaml(settings), licence)
    for part, scores in trained.scores.items():
        stdout.print(
            f"{part}: "
            + ", ".join(
                f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
                for name, value in scores.items()
            )
        )
    stdout.print(f"weights and card: {trained.folder}", soft_wrap=True)
    for case_id, reason in trained.rejected:
        stderr.print(f"medad: {case_id} was left out: {reason}", soft_wrap=True)
    return SOME_REJECTED if trained.rejected else OK


@_command
def reproduce(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Folder of labelled cases, of phantoms, or of both.")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for the table and what it is made of.")],
    words: Words = None,
    config: Config = None,
) -> int:
    """Make the paper's table on DATA: every row trained and scored on the same patients; the same command again resumes."""
    from medad_core.config import load_settings, settings_to_yaml
    from medad_core.store import check_writable

    settings, out = load_settings(config, words or []), _absolute(out)
    stdout, stderr = consoles(online=not settings.models.offline)
    from flows.cli.progress import following
    from medad_core.data.cases import discover

    discover(data, settings.data.modality)
    check_writable(out)
    with stderr.status("checking data, models and settings"):
        from flows.cli.server import start_temporary_server
        from flows.preflight import check_reproducing
        from flows.reproduce import RowsFailed
        from flows.reproduce import reproduce as reproduce_flow

        check_reproducing(out, settings)
        start_temporary_server()
    with following("tasks.reproduce", stderr, keep=("cases", "units", "table")):
        try:
            made = reproduce_flow(_absolute(data), out, settings_to_yaml(settings))
        except RowsFailed as failed:
            made = failed.made
    from flows.cli.tables import paper_table
    from medad_core.store import read_table

    for table in paper_table(read_table(made.table).to_pylist(), dict(made.failed), settings.reproduce.rule):
        stdout.print(table)
    for name, uri in (("table", made.text), ("figure", made.figure), ("errors", made.gallery)):
        stdout.print(f"{name:<8} {uri}", soft_wrap=True)
    for case_id, reason in made.rejected:
        stderr.print(f"medad: {case_id} was left out: {reason}", soft_wrap=True)
    for row, reason in made.failed:
        stderr.print(f"medad: row {row} failed: {reason}", soft_wrap=True)
    return FAILED if made.failed else SOME_REJECTED if made.rejected else OK


@_command
def phantom(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder for the cohort.")],
    cases: Annotated[int, typer.Option("--cases", min=1, help="How many cases.")] = 8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same cohort.")] = 0,
) -> None:
    """Generate a cohort of phantoms (no patients) in BraTS 2021 layout."""
    from medad_core.store import check_writable

    stdout, stderr = consoles()
    check_writable(out)
    with stderr.status(f"drawing {cases} phantoms"):
        from medad_core.data.phantom import generate_cohort

        generate_cohort(Path(out), cases, seed)
    stdout.print(f"{cases} phantoms, not patients: {out}", soft_wrap=True)


@_command
def status(
    run: Annotated[str, typer.Argument(metavar="RUN|COHORT", help="Folder or URI of a run, or folder of a cohort.")],
) -> None:
    """Say how far a run or a cohort is, from its files alone."""
    from flows.cli.status import cohort_status, run_status
    from flows.cli.tables import terminal
    from medad_core.inbox.folder import is_cohort

    for part in cohort_status(run) if is_cohort(run) else run_status(run):
        terminal().print(part, soft_wrap=isinstance(part, str))


@_command
def prune(
    cohort: Annotated[str, typer.Argument(metavar="COHORT", help="Folder of a cohort.")],
    keep: Annotated[
        int,
        typer.Option(
            "--keep", min=0, help="How many batches, counted from the newest, keep slices, maps, prompts and answers."
        ),
    ] = 3,
) -> None:
    """Remove what lies between volumes and predictions from older batches; predictions, pages, metrics and records stay."""
    from medad_core.inbox.prune import prune as prune_cohort

    stdout, _ = consoles()
    pruned = prune_cohort(_absolute(cohort), keep)
    stdout.print(
        f"{len(pruned)} batches pruned, {sum(pruned.values()) / 1e6:.1f} MB freed" if pruned else "nothing to prune"
    )


_command(serve)
_command(deploy)
app.add_typer(models_app, name="models")


@_command
def doctor() -> int:
    """Say what is there, what is missing and what to do."""
    stdout, stderr = consoles()
    from flows.cli.doctor import examine, findings_table

    with stderr.status("looking"):
        findings = list(examine())
    stdout.print(findings_table(findings))
    faults = sum(finding.state == "fault" for finding in findings)
    stdout.print("screening can run" if not faults else f"screening cannot run: {faults} things are missing")
    return FAILED if faults else OK


@command(benchmarks)
def encode(
    words: Words = None,
    config: Config = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="vit-s-14, vit-b-14, vit-l-14 or vit-h-14 (random weights of that size), or what models.encoder takes.",
        ),
    ] = "vit-s-14",
    device: Annotated[str | None, typer.Option("--device", help="As models.device.")] = None,
    compiled: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Also measure models.compile; by default on a GPU only."),
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report there too.")] = None,
) -> None:
    """Slices to maps: slices a second, FLOP a second beside the fastest matrix product, reading, and the naive loop."""
    from medad_core.config import load_settings

    settings = load_settings(config, [*([f"models.device={device}"] if device else []), *(words or [])])
    stdout, stderr = consoles(online=not settings.models.offline)
    with stderr.status("starting") as status:
        from flows.cli.benchmark import report_json, report_tables
        from medad_core.benchmark.encode import benchmark_encode

        report = benchmark_encode(model, settings, compiled, progress=status.update)
    for table in report_tables(report):
        stdout.print(table)
    if json is not None:
        from medad_core.store import write_text

        write_text(_absolute(str(json)), report_json(report))
        stdout.print(f"report {json}", soft_wrap=True)


@command(benchmarks)
def orchestration(
    words: Words = None,
    config: Config = None,
    parts: Annotated[
        list[int] | None, typer.Option("--parts", min=1, help="Numbers of parts, rising; by default 1, 10 and 100.")
    ] = None,
    turns: Annotated[
        int, typer.Option("--turns", min=1, help="How often each is measured, loop and flows in turn.")
    ] = 3,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report there too.")] = None,
) -> None:
    """The same work as a plain loop and through Prefect: time that it adds, and memory."""
    from medad_core.config import load_settings

    settings = load_settings(config, words or [])
    stdout, stderr = consoles(online=not settings.models.offline)
    with stderr.status("starting") as status:
        from flows.cli.benchmark import orchestration_table, report_json
        from medad_core.benchmark.orchestration import PARTS, benchmark_orchestration

        report = benchmark_orchestration(settings, parts or PARTS, turns, progress=status.update)
    stdout.print(orchestration_table(report))
    if json is not None:
        from medad_core.store import write_text

        write_text(_absolute(str(json)), report_json(report))
        stdout.print(f"report {json}", soft_wrap=True)


def main() -> None:
    """Entry point of the `medad` script."""
    app()

"""`medad`: the command line.

One decision: everything heavy is imported inside the commands, so that `medad --help` answers at once. Exit codes are in
`flows.console.command`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.console.command import FAILED, OK, SOME_REJECTED, command, consoles, group, show_tracebacks
from flows.console.models import models_app
from medad_core.errors import ConfigError

app = group(name="medad", help="Screen cohorts of brain MRI for anomalies: maps, sentences and metrics. For research; not a medical device.", no_args_is_help=True)
_command = command(app)
benchmarks = group(help="Measure how fast this machine is, beside what it could be.", no_args_is_help=True)
app.add_typer(benchmarks, name="benchmark")

Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings; configs/default.yaml shows all.")]
Words = Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings, such as data.first_slice=70.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="Folder or URI of a run.")]


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and everything that is logged.")] = False) -> None:
    show_tracebacks(debug)


def _absolute(uri: str) -> str:
    """A local path made absolute, because workers may have another working folder; other URIs as they are."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


@_command
def screen(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Folder of cases: BraTS, MSD, or one flat folder.")],
    out: Annotated[str, typer.Option("--out", metavar="RUN", help="Folder or URI for the results.")],
    words: Words = None,
    config: Config = None,
) -> int:
    """Screen every case below DATA; the same command again resumes."""
    from medad_core.config import load_settings, settings_to_yaml

    settings, run = load_settings(config, words or []), _absolute(out)
    stdout, stderr = consoles(online=not settings.models.offline)
    from flows.console.progress import watching

    with stderr.status("checking data, models and settings"):
        from flows.console.server import start_temporary_server
        from flows.preflight import check_screening
        from flows.screen import screen as screen_flow

        check_screening(data, run, settings)
        start_temporary_server()
    with watching(run, stderr):
        outcome = screen_flow(_absolute(data), run, settings_to_yaml(settings))
    return _tell(outcome, stdout, stderr)


@_command
def evaluate(run: Run, words: Words = None) -> int:
    """Make predictions, metrics and page of a finished RUN again; key=value of `evaluate` may change."""
    from medad_core.config import load_settings, settings_from_yaml, settings_to_yaml
    from medad_core.store import read_run_info

    run, words = _absolute(run), words or []
    load_settings(None, words)
    foreign = [word for word in words if not word.startswith("evaluate.")]
    if foreign:
        raise ConfigError(f"{foreign[0]}: only evaluate.* can change in a finished run; screen again with another --out for the rest")
    settings = settings_from_yaml(read_run_info(run).settings)
    changed = load_settings(None, [f"evaluate={settings.evaluate.model_dump_json()}", *words]).evaluate
    stdout, stderr = consoles()
    with stderr.status("evaluating"):
        from flows.console.server import start_temporary_server
        from flows.preflight import check_orchestration
        from flows.stages import evaluate as evaluate_flow

        check_orchestration(settings)
        start_temporary_server()
        outcome = evaluate_flow(run, settings_to_yaml(settings.model_copy(update={"evaluate": changed})))
    return _tell(outcome, stdout, stderr)


def _tell(outcome, stdout, stderr) -> int:
    from flows.console.tables import metrics_rows
    from medad_core.store import join, read_table

    run = outcome.predictions.rsplit("/", 1)[0]
    stdout.print(metrics_rows(read_table(join(run, "metrics.parquet")).to_pylist()))
    for name, uri in (("predictions", outcome.predictions), ("metrics", outcome.metrics), ("page", outcome.page)):
        stdout.print(f"{name:<12} {uri}", soft_wrap=True)
    stdout.print(f"{outcome.slices} slices of {outcome.cases} cases; {len(outcome.rejected)} cases rejected")
    if not outcome.rejected:
        return OK
    stderr.print(f"medad: {len(outcome.rejected)} cases could not be used; {join(run, 'rejected.csv')} says why", soft_wrap=True)
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
    from flows.console.progress import following
    from medad_core.data.cases import discover

    discover(data, settings.data.modality)
    check_writable(out)
    with stderr.status("checking models and settings"):
        from flows.console.server import start_temporary_server
        from flows.preflight import check_training
        from flows.train import train as train_flow

        check_training(settings)
        start_temporary_server()
    with following("tasks.whole", stderr):
        trained = train_flow(_absolute(data), out, settings_to_yaml(settings), licence)
    for part, scores in trained.scores.items():
        stdout.print(f"{part}: " + ", ".join(f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in scores.items()))
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
    from flows.console.progress import following
    from medad_core.data.cases import discover

    discover(data, settings.data.modality)
    check_writable(out)
    with stderr.status("checking data, models and settings"):
        from flows.console.server import start_temporary_server
        from flows.preflight import check_reproducing
        from flows.reproduce import reproduce as reproduce_flow

        check_reproducing(out, settings)
        start_temporary_server()
    with following("tasks.reproduce", stderr, keep=("cases", "units", "table")):
        made = reproduce_flow(_absolute(data), out, settings_to_yaml(settings))
    from flows.console.tables import paper_table
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
def status(run: Run) -> None:
    """Say how far RUN is, from its files alone."""
    from flows.console.tables import status_table, terminal
    from medad_core.stages.common import PART_STAGES, stage_of
    from medad_core.store import join, read_run_info
    from medad_core.store.files import size_of

    info = read_run_info(run)
    stages = [(name, stage_of(run, name)) for name in PART_STAGES]
    console = terminal()
    console.print(f"{run}: cases of {info.data_root}", soft_wrap=True)
    console.print(status_table((name, stage.progress() if stage.find_plan() else None) for name, stage in stages))
    for name in ("predictions.parquet", "metrics.md", "report.html", "rejected.csv"):
        console.print(f"{name:<20} {'there' if size_of(join(run, name)) is not None else 'not yet'}")


app.add_typer(models_app, name="models")


@_command
def doctor() -> int:
    """Say what is there, what is missing and what to do."""
    stdout, stderr = consoles()
    from flows.console.doctor import examine, findings_table

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
    model: Annotated[str, typer.Option("--model", help="vit-s-14, vit-b-14, vit-l-14 or vit-h-14 (random weights of that size), or what models.encoder takes.")] = "vit-s-14",
    device: Annotated[str, typer.Option("--device", help="As models.device.")] = "auto",
    compiled: Annotated[bool | None, typer.Option("--compile/--no-compile", help="Also measure models.compile; by default on a GPU only.")] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report there too.")] = None,
) -> None:
    """Slices to maps: slices a second, FLOP a second beside the fastest matrix product, reading, and the naive loop."""
    from medad_core.config import load_settings

    settings = load_settings(config, [f"models.device={device}", *(words or [])])
    stdout, stderr = consoles(online=not settings.models.offline)
    with stderr.status("starting") as status:
        from flows.console.benchmark import report_json, report_tables
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
    parts: Annotated[list[int] | None, typer.Option("--parts", min=1, help="Numbers of parts, rising; by default 1, 10 and 100.")] = None,
    turns: Annotated[int, typer.Option("--turns", min=1, help="How often each is measured, loop and flows in turn.")] = 3,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report there too.")] = None,
) -> None:
    """The same work as a plain loop and through Prefect: time that it adds, and memory."""
    from medad_core.config import load_settings

    settings = load_settings(config, words or [])
    stdout, stderr = consoles(online=not settings.models.offline)
    with stderr.status("starting") as status:
        from flows.console.benchmark import orchestration_table, report_json
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


if __name__ == "__main__":
    main()

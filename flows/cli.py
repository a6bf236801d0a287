"""`medad`: the command line.

One decision: this module alone knows exit codes (0 done, 1 failed, 2 wrong usage, 3 done but some cases rejected, 130
interrupted). Everything heavy is imported inside the commands, so that `medad --help` answers at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from medad_core.errors import ConfigError, MedadError, UsageError

OK, FAILED, WRONG_USAGE, SOME_REJECTED, INTERRUPTED = 0, 1, 2, 3, 130

app = typer.Typer(
    name="medad",
    help="Screen cohorts of brain MRI for anomalies: maps, sentences and metrics. For research; not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
_debug = False

Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings; configs/default.yaml shows all.")]
Words = Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings, such as data.first_slice=70.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="Folder or URI of a run.")]


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and everything that is logged.")] = False) -> None:
    global _debug
    _debug = debug


def _coded(function: Callable[..., int | None]) -> Callable[..., None]:
    """What a function returns, or raises, becomes the exit code."""

    @functools.wraps(function)
    def run(*args, **kwargs) -> None:
        try:
            code = function(*args, **kwargs) or OK
        except MedadError as error:
            if _debug:
                raise
            typer.echo(f"medad: {error}", err=True)
            code = WRONG_USAGE if isinstance(error, UsageError) else FAILED
        except KeyboardInterrupt:
            typer.echo("medad: interrupted; the same command goes on where it stopped", err=True)
            code = INTERRUPTED
        if code:  # a group goes on to its command
            raise typer.Exit(code)

    return run


def _command(function: Callable[..., int | None]) -> Callable[..., None]:
    """Register a command under the function's name."""
    return app.command(name=function.__name__)(_coded(function))


def _consoles():
    """Where results go (stdout) and where progress goes (stderr); quietens the libraries."""
    from flows.console.quiet import prepare_process
    from flows.console.tables import terminal

    out, err = terminal(), terminal(stderr=True)
    prepare_process(_debug, err)
    return out, err


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
    stdout, stderr = _consoles()
    from flows.console.progress import watching

    with stderr.status("checking data, models and settings"):
        from flows.preflight import check_screening
        from flows.screen import screen as screen_flow

        check_screening(data, run, settings)
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
    stdout, stderr = _consoles()
    with stderr.status("evaluating"):
        from flows.preflight import check_orchestration
        from flows.stages import evaluate as evaluate_flow

        check_orchestration(settings)
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
    stdout, stderr = _consoles()
    from flows.console.progress import following
    from medad_core.data.cases import discover

    discover(data, settings.data.modality)
    check_writable(out)
    with stderr.status("starting"):
        from flows.preflight import check_orchestration
        from flows.train import train as train_flow

        check_orchestration(settings)
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
    stdout, stderr = _consoles()
    from flows.console.progress import following
    from medad_core.data.cases import discover

    discover(data, settings.data.modality)
    check_writable(out)
    with stderr.status("checking data, models and settings"):
        from flows.preflight import check_reproducing
        from flows.reproduce import reproduce as reproduce_flow

        check_reproducing(out, settings)
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

    stdout, stderr = _consoles()
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


models = typer.Typer(invoke_without_command=True, help="List the models that can be named, where they come from, and what is installed; or import others.")
imports = typer.Typer(no_args_is_help=True, help="Make checkpoints of other projects into what medad loads.")
app.add_typer(models, name="models")
models.add_typer(imports, name="import")


@models.callback()
@_coded
def _list_models(context: typer.Context) -> None:
    if context.invoked_subcommand:
        return
    from flows.console.inventory import embedded_weights, packaged_models
    from flows.console.tables import models_table, terminal

    console = terminal()
    console.print(models_table((m.name, m.role, m.distribution, m.licence, m.source is not None, m.converted) for m in packaged_models()))
    console.print(f"weights 'embedded' (decoder and converter for these three): {embedded_weights() or 'not there'}", soft_wrap=True)
    console.print(
        "Others: models.encoder takes a local transformers folder of a DINOv2 or CLIP vision model, models.text_encoder one of a BERT sentence encoder, "
        "llm.model one of a Llama model; models.weights then names a folder that `medad train` made for them.",
    )


@imports.command("anomalygpt")
@_coded
def _import_anomalygpt(
    checkpoints: Annotated[list[Path], typer.Argument(metavar="CHECKPOINT", help="PandaGPT's delta first, then AnomalyGPT's pytorch_model.pt.")],
    out: Annotated[Path, typer.Option("--out", metavar="WEIGHTS", help="Folder for weights and card.")],
    encoder: Annotated[str, typer.Option("--encoder", help="Image encoder it was trained on (ImageBind), by name or folder.")],
    text_encoder: Annotated[str, typer.Option("--text-encoder", help="Text encoder it was trained on (ImageBind's), by name or folder.")],
    llm: Annotated[str, typer.Option("--llm", help="LLM it was trained on (Vicuna), by name or folder.")],
    thing: Annotated[str, typer.Option("--thing", help="What its sentences speak of: 'a photo of a damaged THING.'")] = "object",
    lora_alpha: Annotated[float, typer.Option("--lora-alpha", min=0, help="Of the LoRA, which no checkpoint says.")] = 32.0,
) -> None:
    """Make AnomalyGPT's checkpoints into a weights folder for `models.weights`."""
    stdout, stderr = _consoles()
    with stderr.status("importing"):
        from medad_core.models.imports.anomalygpt import import_anomalygpt
        from medad_core.store import check_writable

        check_writable(str(out))
        made = import_anomalygpt(checkpoints, out.absolute(), encoder=encoder, text_encoder=text_encoder, llm=llm, thing=thing, lora_alpha=lora_alpha)
    stdout.print(f"weights and card: {made.folder}", soft_wrap=True)
    stdout.print(f"use them with: medad screen DATA --out RUN {' '.join(made.words)}", soft_wrap=True)


@_command
def doctor() -> int:
    """Say what is there, what is missing and what to do."""
    stdout, stderr = _consoles()
    from flows.console.doctor import examine, findings_table

    with stderr.status("looking"):
        findings = list(examine())
    stdout.print(findings_table(findings))
    faults = sum(finding.state == "fault" for finding in findings)
    stdout.print("screening can run" if not faults else f"screening cannot run: {faults} things are missing")
    return FAILED if faults else OK


def main() -> None:
    """Entry point of the `medad` script."""
    app()


if __name__ == "__main__":
    main()

"""`medad benchmark`: how fast this machine is, beside what it could be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.command import Consoles, command, consoles, group
from flows.cli.options import Config, Json, Words, absolute

if TYPE_CHECKING:
    from flows.cli.benchmark_tables import Report
    from medad_core.benchmark.duel import DuelReport
    from medad_core.progress import ReportText

benchmarks = group(help="Measure how fast this machine is, beside what it could be.", no_args_is_help=True)
MODEL_HELP = "vit-s-14, vit-b-14, vit-l-14 or vit-h-14 (random weights of that size), or what models.encoder takes."
OUT_HELP = "A new folder that the runs are made in and stay in, also in a bucket; by default a temporary one."
AGAINST_HELP = "A peer; may be repeated. By default (or with `all`) those that are installed; the others are named."
ENCODE_AGAINST_HELP = "Measure the stage beside this peer, or `all`, instead; may be repeated."
Against = Annotated[list[str] | None, typer.Option("--against", metavar="PEER", help=AGAINST_HELP)]
Pairs = Annotated[int, typer.Option("--pairs", min=1, help="How often medad and each peer are measured in turn.")]
Real = Annotated[str, typer.Argument(metavar="RUN", help="A run with maps, which are repeated with noise.")]
TRACE_HELP = "Where the timeline of medad's last run is written, for ui.perfetto.dev."
COMPILE_HELP = "Also measure models.compile; by default on a GPU only."


@command(benchmarks)
def encode(
    words: Words = None,
    config: Config = None,
    model: Annotated[str, typer.Option("--model", help=MODEL_HELP)] = "vit-s-14",
    device: Annotated[str | None, typer.Option("--device", help="As models.device.")] = None,
    compiled: Annotated[bool | None, typer.Option("--compile/--no-compile", help=COMPILE_HELP)] = None,
    against: Annotated[list[str] | None, typer.Option("--against", metavar="PEER", help=ENCODE_AGAINST_HELP)] = None,
    pairs: Pairs = 5,
    json: Json = None,
) -> None:
    """Slices to maps: slices a second, FLOP a second beside the fastest matrix product, reading, and the naive loop.

    With --against, the models of the settings are measured, and --model and --compile do not count.
    """
    from medad_core.config import load_settings

    chosen = [f"models.device={device}"] if device else []
    settings = load_settings(config, [*chosen, *(words or [])])
    if against:

        def measure(progress: ReportText) -> DuelReport:
            from medad_core.benchmark.peers.encode import benchmark_encoders

            return benchmark_encoders(settings, against, pairs, progress)

        _measured(measure, json)
        return
    terminals = consoles(online=not settings.models.offline)
    with terminals.err.status("starting") as status:
        from flows.cli.benchmark_tables import report_tables
        from medad_core.benchmark.encode import benchmark_encode

        report = benchmark_encode(model, settings, compiled, progress=status.update)
    for table in report_tables(report):
        terminals.out.print(table)
    _write_json(json, report, terminals)


@command(benchmarks)
def stages(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Cases as `medad screen` takes them, best a dozen.")],
    words: Words = None,
    config: Config = None,
    out: Annotated[str | None, typer.Option("--out", help=OUT_HELP)] = None,
    json: Json = None,
) -> None:
    """Every stage of a screening with one worker: slices a second, bytes, tokens, start-up; for `medad plan`."""
    from medad_core.config import load_settings

    settings = load_settings(config, words or [])
    terminals = consoles(online=not settings.models.offline)
    with terminals.err.status("starting") as status, TemporaryDirectory(prefix="medad-benchmark-") as scratch:
        from flows.cli.plan_tables import profile_table
        from medad_core.benchmark.stages import benchmark_stages

        place = scratch if out is None else absolute(out)
        report = benchmark_stages(absolute(data), place, settings, progress=status.update)
    terminals.out.print(profile_table(report))
    _write_json(json, report, terminals)


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
    json: Json = None,
) -> None:
    """The same work as a plain loop and through Prefect: time that it adds, and memory."""
    from medad_core.config import load_settings

    settings = load_settings(config, words or [])
    terminals = consoles(online=not settings.models.offline)
    with terminals.err.status("starting") as status:
        from flows.cli.benchmark_tables import orchestration_table
        from medad_core.benchmark.orchestration import PARTS, benchmark_orchestration

        report = benchmark_orchestration(settings, parts or PARTS, turns, progress=status.update)
    terminals.out.print(orchestration_table(report))
    _write_json(json, report, terminals)


@command(benchmarks)
def bookkeeping(
    cases: Annotated[
        list[int] | None, typer.Option("--cases", min=4, help="Numbers of cases, rising; by default 1,000 to 100,000.")
    ] = None,
    turns: Annotated[int, typer.Option("--turns", min=1, help="How often each is measured.")] = 3,
    json: Json = None,
) -> None:
    """What a run costs beside its work: status, opening it to resume, reading one case; by the number of cases."""
    terminals = consoles()
    with terminals.err.status("starting") as status:
        from flows.cli.benchmark_tables import bookkeeping_table
        from medad_core.benchmark.bookkeeping import CASES, benchmark_bookkeeping

        report = benchmark_bookkeeping(cases or CASES, turns, progress=status.update)
    terminals.out.print(bookkeeping_table(report))
    _write_json(json, report, terminals)


@command(benchmarks)
def read(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Labelled cases as `medad screen` takes them.")],
    words: Words = None,
    config: Config = None,
    against: Against = None,
    pairs: Pairs = 5,
    json: Json = None,
) -> None:
    """Volumes and masks to slices, beside nibabel, MONAI and TorchIO, and beside nothing but inflating."""
    from medad_core.config import load_settings

    settings = load_settings(config, words or [])

    def measure(progress: ReportText) -> DuelReport:
        from medad_core.benchmark.peers.read import benchmark_read

        return benchmark_read(absolute(data), settings, against or (), pairs, progress)

    _measured(measure, json)


@command(benchmarks)
def maps(
    run: Real,
    against: Against = None,
    pairs: Pairs = 5,
    slices: Annotated[int, typer.Option("--slices", min=1, help="Maps that are stored and read.")] = 51_000,
    json: Json = None,
) -> None:
    """The cache of maps beside stored pixels: its size, and how fast rendered maps come back."""

    def measure(progress: ReportText) -> DuelReport:
        from medad_core.benchmark.peers.maps import benchmark_maps

        return benchmark_maps(absolute(run), against or (), pairs, progress, slices)

    _measured(measure, json)


@command(benchmarks)
def pixel_metrics(
    run: Real,
    against: Against = None,
    pairs: Pairs = 5,
    slices: Annotated[int, typer.Option("--slices", min=1, help="Maps that medad is measured on.")] = 51_000,
    json: Json = None,
) -> None:
    """Pixel AUROC, average precision and AUPRO beside metrics of all pixels, which are measured on samples."""

    def measure(progress: ReportText) -> DuelReport:
        from medad_core.benchmark.peers.pixel import benchmark_pixel_metrics

        return benchmark_pixel_metrics(absolute(run), against or (), pairs, progress, slices)

    _measured(measure, json)


@command(benchmarks)
def generate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run with prompts, which are answered again.")],
    against: Against = None,
    pairs: Pairs = 5,
    slices: Annotated[int | None, typer.Option("--slices", min=1, help="Only so many of its prompts.")] = None,
    json: Json = None,
) -> None:
    """Prompts to answers, beside Transformers' generate and vLLM with its defaults."""

    def measure(progress: ReportText) -> DuelReport:
        from medad_core.benchmark.peers.generate import benchmark_generate

        return benchmark_generate(absolute(run), against or (), pairs, progress, slices)

    _measured(measure, json)


@command(benchmarks)
def end_to_end(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Cases as `medad screen` takes them.")],
    words: Words = None,
    config: Config = None,
    against: Against = None,
    pairs: Pairs = 5,
    trace: Annotated[Path | None, typer.Option("--trace", metavar="FILE", help=TRACE_HELP)] = None,
    json: Json = None,
) -> None:
    """Volumes to predictions, beside scripts around the same models; each timed from its start to its end."""
    from medad_core.config import load_settings

    settings = load_settings(config, words or [])

    def measure(progress: ReportText) -> DuelReport:
        from medad_core.benchmark.peers.end_to_end import benchmark_end_to_end

        drawn = None if trace is None else absolute(str(trace))
        return benchmark_end_to_end(absolute(data), settings, against or (), pairs, progress, drawn)

    _measured(measure, json)


@command(benchmarks)
def start_up(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run; its data are screened again.")],
    cohort: Annotated[str | None, typer.Option("--cohort", help="A cohort that has screened all of its inbox.")] = None,
    turns: Annotated[int, typer.Option("--turns", min=1, help="How often each command is started.")] = 5,
    json: Json = None,
) -> None:
    """What commands cost before they work, or where nothing is left to do."""
    terminals = consoles()
    with terminals.err.status("starting") as status:
        from flows.cli.benchmark_tables import start_up_table
        from medad_core.benchmark.start_up import benchmark_start_up

        place = None if cohort is None else absolute(cohort)
        report = benchmark_start_up(absolute(run), place, turns, progress=status.update)
    terminals.out.print(start_up_table(report))
    _write_json(json, report, terminals)


@command(benchmarks)
def growth(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Cases as `medad screen` takes them, best four.")],
    words: Words = None,
    config: Config = None,
    times: Annotated[
        list[int] | None, typer.Option("--times", min=1, help="How often the cases are screened; by default 1, 4, 16.")
    ] = None,
    figure: Annotated[Path | None, typer.Option("--figure", metavar="FILE", help="A PNG of the report.")] = None,
    json: Json = None,
) -> None:
    """The same cases 1, 4 and 16 times: time of a slice and peak of memory by the size of the cohort."""
    from medad_core.config import load_settings

    settings = load_settings(config, words or [])
    terminals = consoles(online=not settings.models.offline)
    with terminals.err.status("starting") as status:
        from flows.cli.benchmark_tables import growth_table
        from medad_core.benchmark.growth import TIMES, benchmark_growth, growth_png
        from medad_core.store import write_bytes

        report = benchmark_growth(absolute(data), settings, times or TIMES, progress=status.update)
    terminals.out.print(growth_table(report))
    if figure is not None:
        write_bytes(absolute(str(figure)), growth_png(report))
        terminals.out.print(f"figure {figure}", soft_wrap=True)
    _write_json(json, report, terminals)


@command(benchmarks)
def table(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="What --json of a measurement with peers wrote.")
    ],
) -> None:
    """One table in Markdown of measurements with peers."""
    from flows.cli.duel_tables import duel_markdown, read_report

    terminals = consoles()
    for line in duel_markdown([read_report(absolute(str(file))) for file in files]):
        terminals.out.print(line, soft_wrap=True)


def _measured(measure: Callable[[ReportText], DuelReport], json: Path | None) -> None:
    """Measure with peers, and show the report."""
    terminals = consoles()
    with terminals.err.status("starting") as status:
        report = measure(status.update)
    from flows.cli.duel_tables import duel_tables

    for shown in duel_tables(report):
        terminals.out.print(shown)
    _write_json(json, report, terminals)


def _write_json(file: Path | None, report: Report, terminals: Consoles) -> None:
    if file is None:
        return
    from flows.cli.benchmark_tables import report_json
    from medad_core.store import write_text

    write_text(absolute(str(file)), report_json(report))
    terminals.out.print(f"report {file}", soft_wrap=True)

"""`medad screen` and `medad evaluate`: what they check, run and print."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.command import FAILED, OK, SOME_REJECTED, Consoles, consoles
from flows.cli.options import Config, RunUri, Words, absolute
from medad_core.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from medad_core.config import Settings
    from medad_core.inbox.screening import CohortOutcome
    from medad_core.run.outcome import Outcome
    from medad_core.run.run import Run

DATA_HELP = "Folder of cases, or a table of files (see medad inspect). With --cohort the folder where new cases arrive."
COHORT_HELP = "Folder of a cohort: only what is new or changed in DATA is screened, as its next batch."
REFRESH_HELP = "With --out: make the cases again whose volume or mask has changed since, and only these."
WAIT_HELP = "With --cohort: wait for another command that screens it, instead of giving up."


def screen(
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)],
    out: Annotated[
        str | None, typer.Option("--out", metavar="RUN", help="Folder or URI for the results of every case of DATA.")
    ] = None,
    cohort: Annotated[str | None, typer.Option("--cohort", metavar="FOLDER", help=COHORT_HELP)] = None,
    wait: Annotated[bool, typer.Option("--wait", help=WAIT_HELP)] = False,
    refresh: Annotated[bool, typer.Option("--refresh", help=REFRESH_HELP)] = False,
    words: Words = None,
    config: Config = None,
) -> int:
    """Screen every case below DATA, or what is new there; the same command again resumes."""
    from medad_core.config import load_settings
    from medad_core.notify import keep_webhook

    if (out is None) == (cohort is None):
        raise UsageError("give --out RUN to screen all of DATA, or --cohort FOLDER to screen what is new in it")
    if wait and cohort is None:
        raise UsageError("--wait goes with --cohort")
    if refresh and out is None:
        raise UsageError("--refresh goes with --out; with --cohort, every command screens what has changed")
    settings = load_settings(config, words or [])
    keep_webhook(settings.notify)
    terminals = consoles(online=not settings.models.offline, mode=settings.store.mode)
    if cohort is not None:
        return _screen_cohort(absolute(data), absolute(cohort), settings, wait, terminals)
    return _screen_run(absolute(data), absolute(str(out)), settings, refresh, terminals)


def _screen_run(data: str, out: str, settings: Settings, refresh: bool, terminals: Consoles) -> int:
    from flows.cli.progress import watching

    with ExitStack() as stack:
        with terminals.err.status("checking data, models and settings"):
            from flows.cli.server import temporary_server
            from flows.orchestrator import check_orchestration, server_url
            from medad_core.run.info import has_results
            from medad_core.store.objects import hasty

            check_orchestration(settings)
            with hasty():
                is_new = not has_results(out)
            start_server = stack.enter_context(temporary_server(soon=is_new))

            # What takes longer to import comes while the server starts.
            from flows.finished import failure_reported, finished_run
            from flows.ray_cluster import check_cluster
            from medad_core.data.summary import summarise
            from medad_core.run.run import Run
            from medad_core.store.files import name_parts

            with failure_reported("screen", name_parts(out)[0], settings):
                run = stack.enter_context(Run.held(data, out, settings, refresh))
                check_cluster(settings, out, run.cohort.root)
            if run.discovery is not None:
                for line in (*summarise(run.discovery, settings.data.modality), *_levels_of(run)):
                    terminals.err.print(line, soft_wrap=True)
            # On a server, every command is a flow run; without one, what is finished needs none.
            outcome = None if server_url() else finished_run(run, data)
            if outcome is None:
                start_server()
        if outcome is None:
            from flows.screen import screen_run  # Prefect takes seconds

            with watching(lambda: out, terminals.err):
                outcome = screen_run(run, data)
    return _report_outcome(outcome, terminals)


def _levels_of(run: Run) -> list[str]:
    """A line on the cases whose slices are not counted by index, if there are any."""
    count = sum(member.levels == "brain" for member in run.cohort.members)
    data = run.settings.data
    if not count:
        return []
    slices = f"slices {data.first_slice} to {data.last_slice} of SRI24"
    return [f"{count} on another grid: what lies at {slices} is found by the brain's extent (data.levels)"]


def _screen_cohort(data: str, cohort: str, settings: Settings, wait: bool, terminals: Consoles) -> int:
    from flows.cli.progress import watching

    with ExitStack() as stack:
        with terminals.err.status("checking inbox, models and settings"):
            from flows.cli.server import temporary_server
            from flows.orchestrator import server_url
            from medad_core.inbox.records import is_cohort
            from medad_core.store.objects import hasty

            with hasty():
                is_new = not is_cohort(cohort)
            start_server = stack.enter_context(temporary_server(soon=is_new))

            # What takes longer to import comes while the server starts.
            from flows.finished import failure_reported, unchanged_cohort
            from flows.preflight import check_asking, check_cohort
            from medad_core.inbox.folder import CohortFolder
            from medad_core.inbox.screening import Inbox
            from medad_core.store.files import name_of, resolved
            from medad_core.store.lock import locked

            folder = CohortFolder(cohort, data)
            check_cohort(data, cohort, settings, wait)
            inbox = None
            if not server_url():  # on a server, every command is a flow run, which waits for others where they see it
                stack.enter_context(locked(folder.uri, wait))
                with failure_reported("screen-cohort", name_of(folder.uri), settings):
                    inbox = Inbox.look(folder, resolved(data), settings)
                outcome = unchanged_cohort(inbox)
                if outcome is not None:
                    return _report_cohort(outcome, terminals)
            check_asking(settings)
            start_server()
            from flows.screen import screen_cohort, screen_looked_at  # Prefect takes seconds

        with watching(folder.open_run, terminals.err):
            outcome = screen_cohort(data, cohort, settings, wait) if inbox is None else screen_looked_at(inbox)
    return _report_cohort(outcome, terminals)


def _report_cohort(outcome: CohortOutcome, terminals: Consoles) -> int:
    from flows.cli.tables import worklist_table

    out, err = terminals
    for batch in outcome.batches:
        out.print(
            f"batch {batch.batch}: {batch.screened} cases screened, {batch.slices} slices; {batch.rejected} rejected"
        )
        out.print(f"{'page':<12} {batch.page}", soft_wrap=True)
        if batch.changed:
            err.print(
                f"medad: {batch.changed} cases changed while they were screened; "
                "the next command screens them as they are now",
                soft_wrap=True,
            )
    if not outcome.batches:
        out.print("nothing new")
    elif (table := worklist_table(outcome.worklist, {batch.batch for batch in outcome.batches})) is not None:
        out.print(table)
    predictions = f"{'predictions':<12} {outcome.predictions}" if outcome.slices else "no predictions yet"
    out.print(predictions, soft_wrap=True)
    _report_worklist(outcome, terminals)
    _report_followed(str(Path(outcome.worklist).parent), outcome.followed, out)
    out.print(
        f"{outcome.slices} slices of {outcome.cases} cases in the cohort; {len(outcome.waiting)} studies wait, "
        f"{len(outcome.unusable)} cannot be used"
    )
    for case_id, reason in outcome.waiting.items():
        err.print(f"medad: {case_id} waits: {reason}", soft_wrap=True)
    for case_id, reason in outcome.unusable.items():
        err.print(f"medad: {case_id} cannot be used: {reason}", soft_wrap=True)
    for batch in outcome.batches:
        if batch.rejected:
            reasons = Path(batch.page).parent / "rejected.csv"
            err.print(
                f"medad: {batch.rejected} cases of batch {batch.batch} were rejected; {reasons} says why",
                soft_wrap=True,
            )
    some_rejected = outcome.unusable or any(batch.rejected for batch in outcome.batches)
    return SOME_REJECTED if some_rejected else OK


def _report_worklist(outcome: CohortOutcome, terminals: Consoles) -> None:
    out, err = terminals
    if outcome.listed:
        not_in_it = f"; {outcome.rejected} rejected cases are not in it" if outcome.rejected else ""
        out.print(f"{'worklist':<12} {outcome.worklist}: {outcome.listed} cases{not_in_it}", soft_wrap=True)
    if outcome.listed < outcome.cases:
        older = outcome.cases - outcome.listed
        err.print(f"medad: {older} cases are not in the worklist: `medad evaluate` lists those of earlier versions")


def _report_followed(folder: str, patients: int, out: Console) -> None:
    if patients:
        several = "1 patient was" if patients == 1 else f"{patients} patients were"
        out.print(f"{several} examined more than once: {folder}/followup.csv", soft_wrap=True)


def evaluate(run: RunUri, words: Words = None) -> int:
    """Make predictions, metrics and page of a finished RUN again; key=value of `evaluate` may change."""
    from medad_core.config import load_settings
    from medad_core.run.info import read_run_info

    run = absolute(run)
    words = words or []
    load_settings(None, words)
    foreign = [word for word in words if not word.startswith("evaluate.")]
    if foreign:
        raise ConfigError(
            f"{foreign[0]}: only evaluate.* can change in a finished run; screen again with another --out for the rest"
        )
    settings = read_run_info(run).parsed_settings()
    changed = load_settings(None, [f"evaluate={settings.evaluate.model_dump_json()}", *words]).evaluate
    terminals = consoles(mode=settings.store.mode)
    with terminals.err.status("evaluating"):
        from flows.cli.server import start_temporary_server
        from flows.orchestrator import check_orchestration
        from flows.stages import evaluate as evaluate_flow
        from medad_core.store.lock import check_unheld

        check_orchestration(settings)
        check_unheld(run)
        start_temporary_server()
        outcome = evaluate_flow(run, settings.model_copy(update={"evaluate": changed}))
    return _report_outcome(outcome, terminals)


def _report_outcome(outcome: Outcome, terminals: Consoles) -> int:
    from flows.cli.tables import metrics_rows, worklist_table
    from medad_core.store import join, read_table

    out, err = terminals
    run = outcome.predictions.rsplit("/", 1)[0]
    out.print(metrics_rows(read_table(join(run, "metrics.parquet")).to_pylist()))
    if (table := worklist_table(join(run, "worklist.csv"))) is not None:
        out.print(table)
    _report_followed(run, outcome.followed, out)
    for name, uri in (("predictions", outcome.predictions), ("metrics", outcome.metrics), ("page", outcome.page)):
        out.print(f"{name:<12} {uri}", soft_wrap=True)
    out.print(f"{'reports':<12} medad report {run}", soft_wrap=True)
    out.print(f"{outcome.slices} slices of {outcome.cases} cases; {len(outcome.rejected)} cases rejected")
    if outcome.warned:
        err.print(f"medad: {outcome.warned} cases are doubtful; {join(run, 'warnings.csv')} says why", soft_wrap=True)
    if not outcome.rejected:
        return OK
    reasons = join(run, "rejected.csv")
    err.print(f"medad: {len(outcome.rejected)} cases could not be used; {reasons} says why", soft_wrap=True)
    return SOME_REJECTED if outcome.cases else FAILED

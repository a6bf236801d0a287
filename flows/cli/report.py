"""`medad report`: a report of every case of a run, or of those named."""

from __future__ import annotations

from typing import Annotated, get_args

import typer

from flows.cli.command import FAILED, OK, SOME_REJECTED, consoles
from flows.cli.options import RunUri, absolute
from medad_core.errors import UsageError

CASES_HELP = "Names of cases, as in worklist.csv; without, all cases."
LANGUAGE_HELP = "en, de or ko, for what is computed; without, report.language of the run."


def report(
    run: RunUri,
    cases: Annotated[list[str] | None, typer.Argument(metavar="[CASE]...", help=CASES_HELP)] = None,
    language: Annotated[str | None, typer.Option("--language", metavar="LANGUAGE", help=LANGUAGE_HELP)] = None,
) -> int:
    """Write a report of every case of RUN (Markdown, HTML, PDF, JSON) to RUN/reports, and the pages to RUN/report."""
    from medad_core.config import Language
    from medad_core.run.info import read_run_info

    run = absolute(run)
    languages = get_args(Language)
    if language is not None and language not in languages:
        raise UsageError(f"--language {language}: medad knows {', '.join(languages)}")
    settings = read_run_info(run).parsed_settings()
    if language is not None:
        changed = settings.report.model_copy(update={"language": language})
        settings = settings.model_copy(update={"report": changed})
    terminals = consoles(mode=settings.store.mode)
    with terminals.err.status("writing reports"):
        from flows.cli.server import start_temporary_server
        from flows.orchestrator import check_orchestration
        from flows.report import report as report_flow
        from medad_core.store.lock import check_unheld

        check_orchestration(settings)
        check_unheld(run)
        start_temporary_server()
        done = report_flow(run, cases or [], settings)
    out, err = terminals
    out.print(f"{done.written} reports written, {done.unchanged} unchanged: {done.folder}", soft_wrap=True)
    out.print(f"{'page':<12} {done.page}", soft_wrap=True)
    for name in done.removed:
        err.print(f"medad: the report {name} was removed: the run has no such case any more", soft_wrap=True)
    for case_id, reason in done.failed:
        err.print(f"medad: {case_id} has no report: {reason}", soft_wrap=True)
    if not done.failed:
        return OK
    return SOME_REJECTED if done.written or done.unchanged else FAILED

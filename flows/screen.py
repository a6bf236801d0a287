"""All stages: a cohort, or new studies of an inbox, in; predictions, metrics and page out.

One decision: a command opens and checks the run before its flow begins, and passes it on (`screen_run`). A deployment
has only references, so its flow opens the run itself (`screen`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from datetime import date

from prefect import flow
from prefect.runtime import flow_run

from flows.cancellation import cancellable
from flows.outcome import Report, outcome_reported
from flows.parameters import DEFAULTS, SettingsParameter
from flows.stages import evaluate_within, stage_within
from medad_core.inbox.folder import CohortFolder
from medad_core.inbox.screening import CohortOutcome, Inbox
from medad_core.permissions import set_mode
from medad_core.run.outcome import Outcome
from medad_core.run.run import Run
from medad_core.stages.complete import require_cases
from medad_core.store import PART_STAGES
from medad_core.store.files import name_of, name_parts, resolved
from medad_core.store.lock import check_unheld, locked


def _run_name() -> str:
    return run_name(flow_run.parameters["data"])


def _cohort_run_name() -> str:
    return run_name(flow_run.parameters["cohort"])


def run_name(folder: str) -> str:
    """The name of a flow run, such as `screen-ward-2026-02-03`."""
    return f"screen-{name_of(folder)}-{date.today()}"


@flow(
    name="screen",
    description="A cohort of volumes to predictions, metrics and page.",
    persist_result=False,
    flow_run_name=_run_name,
)
def screen(data: str, run: str, settings: SettingsParameter = DEFAULTS, refresh: bool = False) -> Outcome:
    """Screen every case below `data`; run it again to resume.

    A run knows the volumes and masks it was made of by their content. A case whose files have changed is refused by
    name; with `refresh`, the parts that hold it are made again in every stage, and predictions, metrics and page
    follow. The splits stay as they were dealt, whatever a mask says now.
    """
    check_unheld(run)

    def work() -> Outcome:
        with (
            outcome_reported("screen", name_parts(run)[0], settings) as report,
            Run.held(data, run, settings, refresh) as opened,
        ):
            return _screen(opened, data, report)

    return cancellable(work)


def screen_run(run: Run, data: str) -> Outcome:
    """Screen an opened run of the cases below `data`, in a flow run like that of `screen`."""

    def work() -> Outcome:
        with outcome_reported("screen", name_parts(run.uri)[0], run.settings) as report:
            return _screen(run, data, report)

    opened = flow(name="screen", description=screen.description, flow_run_name=run_name(data), persist_result=False)
    return opened(lambda: cancellable(work))()


def _screen(run: Run, data: str, report: Report) -> Outcome:
    for name in PART_STAGES:
        with _beside(run, name):
            require_cases(run, stage_within(run, name))
    run.note(data)
    outcome = evaluate_within(run)
    report.runs = (run.uri,)
    report.counts = outcome.counts()
    return outcome


@flow(
    name="screen-cohort",
    description="New and changed studies of an inbox to predictions of a cohort.",
    persist_result=False,
    flow_run_name=_cohort_run_name,
)
def screen_cohort(inbox: str, cohort: str, settings: SettingsParameter = DEFAULTS, wait: bool = False) -> CohortOutcome:
    """Screen new and changed studies of `inbox`; a second command on the same cohort is refused, or waits."""
    set_mode(settings.store.mode)
    folder = CohortFolder(cohort, inbox)

    def work() -> CohortOutcome:
        with locked(folder.uri, wait), outcome_reported("screen-cohort", name_of(folder.uri), settings) as report:
            return _screen_inbox(Inbox.look(folder, resolved(inbox), settings), report)

    return cancellable(work)


def screen_looked_at(inbox: Inbox) -> CohortOutcome:
    """Screen what is new in an inbox that was looked at, in a flow run like that of `screen_cohort`."""
    folder = inbox.folder.uri

    def work() -> CohortOutcome:
        with outcome_reported("screen-cohort", name_of(folder), inbox.settings) as report:
            return _screen_inbox(inbox, report)

    named = run_name(folder)
    options = {"description": screen_cohort.description, "flow_run_name": named, "persist_result": False}
    return flow(name="screen-cohort", **options)(lambda: cancellable(work))()


def _screen_inbox(inbox: Inbox, report: Report) -> CohortOutcome:
    outcome = inbox.screen(_screen_batch)
    report.counts = outcome.counts()
    report.runs = tuple(inbox.folder.run_of(batch.batch) for batch in outcome.batches)
    return outcome


def _screen_batch(run: Run, machine_is_well: bool) -> str:
    """Run the stages of a batch; returns its page."""
    for name in PART_STAGES:
        with _beside(run, name):
            stage_within(run, name, machine_is_well)
    return evaluate_within(run).page


def _beside(run: Run, name: str) -> AbstractContextManager[None]:
    """While maps are drawn, the engine of the answers is imported."""
    if name != "maps":
        return nullcontext()
    from medad_core.stages.ahead import engine_imported_beside  # imports torch

    return engine_imported_beside(run.settings, name)

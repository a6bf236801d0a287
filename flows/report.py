"""Reports of the cases of a finished run, as a flow.

One decision: ranges of parts are tasks, as in the stages, but no supervisor watches them. A case without a report
says why and stops nothing, and the same flow again writes only what is not there yet.
"""

from __future__ import annotations

from collections.abc import Sequence

from prefect import flow
from prefect.runtime import flow_run

from flows.cancellation import cancellable, stop_if_cancelled
from flows.executor import interruptible, range_count, task_runner
from flows.outcome import untagged
from flows.parameters import SettingsParameter
from flows.stages import stage_run_name
from medad_core.run.run import Run
from medad_core.stages.complete import ranges_of
from medad_core.store.lock import held
from tasks.policy import with_policy
from tasks.reports import Reported, report_cases


def _run_name() -> str:
    return stage_run_name("report", flow_run.parameters["run"])


@flow(name="report", description="Results to a report of every case.", persist_result=False, flow_run_name=_run_name)
def report(run: str, cases: Sequence[str] = (), settings: SettingsParameter | None = None) -> Reported:
    """Write the reports of all cases of a finished run, or of those named; without settings, with those of the run.

    Rejected cases are among the failed ones, with their reason. Raises StoreError where the run has no results yet,
    UsageError for a case that it does not have.
    """
    with held(run):
        return cancellable(lambda: _report(Run.reopen(run, settings), list(cases)))


def _report(run: Run, cases: Sequence[str]) -> Reported:
    # These import torch, which takes seconds, and a deployment imports this module.
    from medad_core.stages.case_files import prepare_folder, remove_orphans
    from medad_core.stages.case_results import RunResults
    from medad_core.stages.page import write_index

    results = RunResults(run)  # a run without results is refused before any task
    rejected = results.rejected()
    chosen = [case_id for case_id in dict.fromkeys(cases) if case_id not in rejected]
    for case_id in chosen:
        results.of(case_id)
    folder = prepare_folder(run)
    made = [] if cases and not chosen else _in_tasks(run, chosen)
    failed = {case_id: reason for case_id, reason in rejected.items() if not cases or case_id in cases}
    for each in made:
        failed |= dict(each.failed)
    return Reported(
        folder=folder,
        page=write_index(run),
        written=sum(each.written for each in made),
        unchanged=sum(each.unchanged for each in made),
        failed=tuple(sorted(failed.items())),
        removed=() if cases else tuple(remove_orphans(run, list(results.cases))),
    )


def _in_tasks(run: Run, cases: list[str]) -> list[Reported]:
    settings = run.settings.flow
    numbers = [part.number for part in run.stage("answers").plan().parts]
    with untagged(), interruptible(task_runner(settings)) as runner:
        futures = [
            runner.submit(
                with_policy(report_cases, f"report-{some[0]:05d}-{some[-1]:05d}", settings),
                {"run": run.uri, "settings": run.settings, "numbers": some, "cases": cases},
            )
            for some in ranges_of(numbers, range_count(settings))
        ]
        made = [future.result() for future in futures]
    stop_if_cancelled()
    return made

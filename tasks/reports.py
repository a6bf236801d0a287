"""The task of reports: a run, its settings and names of cases in, counts and reasons out."""

from __future__ import annotations

from prefect import task
from pydantic import BaseModel, ConfigDict

from medad_core import stopping
from medad_core.config import Settings
from tasks.policy import OPTIONS


class Reported(BaseModel):
    """How many cases were written, how many were there and as they should be, and (case, reason) of the others.

    `folder` has the reports, `page` is the list of the cases; a task has none.
    """

    model_config = ConfigDict(frozen=True)
    folder: str
    page: str | None = None
    written: int = 0
    unchanged: int = 0
    failed: tuple[tuple[str, str], ...] = ()
    removed: tuple[str, ...] = ()


@task(name="report", description="The reports of the cases of a range of parts.", **OPTIONS)
def report_cases(run: str, settings: Settings, numbers: list[int], cases: list[str]) -> Reported:
    """Write the reports of the cases of parts of the answers, or of those among them that `cases` names."""
    from medad_core.run.run import Run
    from medad_core.stages.case_files import FOLDER, write_reports
    from medad_core.store import join

    stopping.end_with_parent()
    opened = Run.reopen(run, settings)
    answers = opened.stage("answers")
    wanted = [case_id for number in numbers for case_id in answers.done_inputs(number)]
    chosen = [case_id for case_id in wanted if not cases or case_id in cases]
    if not chosen:
        return Reported(folder=join(run, FOLDER))
    done = write_reports(opened, chosen)
    return Reported(
        folder=join(run, FOLDER),
        written=len(done.written),
        unchanged=len(done.unchanged),
        failed=tuple(done.failed.items()),
    )

"""The whole path: a cohort in; slices, maps, prompts, answers, predictions, metrics and page out."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from flows.preflight import note_run, open_run
from flows.stages import answers, evaluate, maps, one_heartbeat, prompts, slices
from flows.visible import told, words_of
from medad_core.config import settings_from_yaml
from medad_core.errors import MedadError
from medad_core.store import Progress
from tasks.whole import Outcome


def _run_name() -> str:
    return f"screen-{Path(flow_run.parameters['data']).name}-{date.today()}"


@flow(
    name="screen",
    description="A cohort of volumes to predictions, metrics and page.",
    persist_result=False,
    flow_run_name=_run_name,
)
def screen(data: str, run: str, settings: str = "") -> Outcome:
    """Screen every case below `data`; run it again to resume."""
    parsed, (name, *_) = settings_from_yaml(settings), words_of(run)
    with told("screen", name, parsed) as telling, one_heartbeat():
        open_run(data, run, parsed)
        _require_cases(run, slices(run, settings))
        maps(run, settings)
        prompts(run, settings)
        answers(run, settings)
        note_run(data, run, parsed)
        outcome = evaluate(run, settings)
        telling.runs, telling.counts = (
            (run,),
            {"cases": outcome.cases, "slices": outcome.slices, "rejected": len(outcome.rejected)},
        )
        return outcome


def _require_cases(run: str, now: Progress) -> None:
    if now.done == 0:
        raise MedadError(f"none of the {now.requested} cases could be used; {run}/rejected.csv says why of each")

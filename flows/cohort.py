"""An inbox into a cohort: what is new or changed becomes a batch, what a killed command left is finished first.

One decision: a batch is an ordinary run, and counts from the moment that its commit is written (medad_core.inbox). Up to two batches a command: the one
that was left, and one of what has come since; and a third of what went wrong before, each study a part of its own. So nobody is held up or taken along by
a study that cannot be screened, which alone cannot be told from a broken machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import NamedTuple

from prefect import flow
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict

from flows.preflight import note_run
from flows.stages import answers, evaluate, maps, one_heartbeat, prompts, slices
from flows.visible import Telling, told
from medad_core.config import Settings, settings_from_yaml, settings_to_yaml
from medad_core.inbox.records import BatchPlan, PlannedStudy
from tasks.policy import SURE_IN_A_ROW, Suspect, machine_is_well

FEW = SURE_IN_A_ROW  # parts; more that fail one after another are not at fault


class Screened(BaseModel):
    """A batch that was committed: numbers of cases, and of slices with a prediction."""

    model_config = ConfigDict(frozen=True)
    batch: int
    page: str
    screened: int
    rejected: int
    changed: int
    slices: int


class Stuck(NamedTuple):
    """A batch that was left and stopped again, and the suspect that stopped it."""

    plan: BatchPlan
    suspect: Suspect


class CohortOutcome(BaseModel):
    """What a look into the inbox came to. `cases` and `slices` are those of the whole cohort's predictions."""

    model_config = ConfigDict(frozen=True)
    predictions: str
    batches: tuple[Screened, ...]
    cases: int
    slices: int
    waiting: dict[str, str]
    unusable: dict[str, str]


def _run_name() -> str:
    return f"screen-{Path(flow_run.parameters['cohort']).name}-{date.today()}"


@flow(
    name="screen-cohort",
    description="New and changed studies of an inbox to predictions of a cohort.",
    persist_result=False,
    flow_run_name=_run_name,
)
def screen_cohort(inbox: str, cohort: str, settings: str = "", wait: bool = False) -> CohortOutcome:
    """Screen what is new or changed in `inbox`; a second command on the same cohort is refused, or waits."""
    from medad_core.inbox.folder import CohortFolder
    from medad_core.inbox.lock import locked
    from medad_core.inbox.scan import scan_inbox

    folder, source, given = CohortFolder(cohort, Path(inbox)), Path(inbox).resolve(), settings_from_yaml(settings)
    with locked(folder.folder, wait), told("screen-cohort", folder.folder.name, given) as telling:
        folder.reconcile()
        parsed, fingerprint = _settled(folder, given)
        batches, stuck = _screen_left(folder, source, parsed)
        seen = scan_inbox(source, parsed, folder.known_files())
        folder.write_ledger(source, seen)
        well = False
        for studies, apart in _sorted_out(folder, folder.pending(seen, parsed.inbox.attempts), stuck, parsed):
            batches.append(
                _screen_batch(
                    folder, source, folder.plan_batch(source, studies, fingerprint, parsed, apart), parsed, well
                )
            )
            well = batches[-1].screened > 0
            folder.write_ledger(source, seen)
        outcome = _outcome(folder, batches, seen)
        _tell(telling, folder, outcome)
        return outcome


def _screen_left(folder, inbox: Path, settings: Settings) -> tuple[list[Screened], Stuck | None]:
    """Finish the batch that was left, if any."""
    plan = folder.resume(inbox)
    if plan is None:
        return [], None
    try:
        return [_screen_batch(folder, inbox, plan, settings)], None
    except Suspect as suspect:
        return [], Stuck(plan, suspect)


def _sorted_out(
    folder, pending: Sequence[PlannedStudy], stuck: Stuck | None, settings: Settings
) -> list[tuple[tuple[PlannedStudy, ...], bool]]:
    """What is pending as up to two batches: what comes for the first time, and what went wrong before, apart. A batch that is stuck is let go of for it; its
    suspect is raised where it is so large that the machine must be at fault, or was tried apart and nothing else has come."""
    tried = {planned.study.content for planned in stuck.plan.studies} if stuck else set()
    again = tuple(planned for planned in pending if planned.attempt > 1 or planned.study.content in tried)
    fresh = tuple(planned for planned in pending if planned not in again)
    if stuck is not None:
        hopeless = (
            again == stuck.plan.studies and not fresh
            if stuck.plan.apart
            else len(stuck.plan.studies) > FEW * settings.data.cases_per_part
        )
        if hopeless:
            raise stuck.suspect
        folder.withdraw(stuck.plan)
    return [(studies, apart) for studies, apart in ((fresh, False), (again, True)) if studies]


def _settled(folder, settings: Settings) -> tuple[Settings, dict[str, str]]:
    """The settings with the precision that the cohort has, whatever `auto` would come to on this machine."""
    from medad_core.stages.models import run_fingerprint, settled_precision

    fingerprint = run_fingerprint(settings, folder.fingerprint())
    folder.check_fingerprint(fingerprint)
    models = settings.models.model_copy(update={"precision": settled_precision(fingerprint)})
    return settings.model_copy(update={"models": models}), fingerprint


def _screen_batch(folder, inbox: Path, plan, settings: Settings, well: bool = False) -> Screened:
    """Run the stages on the batch's folder, and commit it. `well`: this command has screened other studies already."""
    if plan.apart:
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"cases_per_part": 1})})
    run, text = str(folder.run_of(plan.number)), settings_to_yaml(settings)
    with one_heartbeat(), _known_well(well):
        note_run(str(inbox), run, settings)
        for stage in (slices, maps, prompts, answers):
            stage(run, text)
        page = evaluate(run, text).page
    batch = folder.commit(inbox, plan)
    done = [screening for screening in batch.screenings if screening.state == "screened"]
    return Screened(
        batch=batch.number,
        page=page,
        screened=len(done),
        rejected=len(batch.screenings) - len(done),
        changed=len(batch.changed),
        slices=sum(screening.slices for screening in done),
    )


@contextmanager
def _known_well(well: bool) -> Iterator[None]:
    token = machine_is_well.set(well)
    try:
        yield
    finally:
        machine_is_well.reset(token)


def _tell(telling: Telling, folder, outcome: CohortOutcome) -> None:
    telling.counts = {
        "batches": len(outcome.batches),
        "cases_screened": sum(batch.screened for batch in outcome.batches),
        "slices_screened": sum(batch.slices for batch in outcome.batches),
        "cases_rejected": sum(batch.rejected for batch in outcome.batches),
        "studies_waiting": len(outcome.waiting),
        "studies_unusable": len(outcome.unusable),
        "cases_in_cohort": outcome.cases,
    }
    telling.runs = tuple(str(folder.run_of(batch.batch)) for batch in outcome.batches)


def _outcome(folder, batches: list[Screened], seen) -> CohortOutcome:
    newest = [screenings[-1] for screenings in folder.histories().values()]
    return CohortOutcome(
        predictions=str(folder.folder / "predictions.parquet"),
        batches=tuple(batches),
        cases=sum(screening.state == "screened" for screening in newest),
        slices=sum(screening.slices for screening in newest),
        waiting=seen.waiting,
        unusable=seen.unusable,
    )

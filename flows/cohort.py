"""An inbox into a cohort: what is new or changed becomes a batch, what a killed command left is finished first.

One decision: a batch is an ordinary run, and counts from the moment that its commit is written (medad_core.inbox). At most two batches a command: the one
that was left, and one of what has come since. A few studies that cannot be told from a broken machine do not hold up those that come after them: they are
screened again together.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict

from flows.preflight import note_run
from flows.stages import convert, evaluate, generate, maps, one_heartbeat, preprocess
from flows.visible import Telling, told
from medad_core.config import Settings, settings_from_yaml, settings_to_yaml
from tasks.policy import SURE_IN_A_ROW, Suspect

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


@flow(name="screen-cohort", description="New and changed studies of an inbox to predictions of a cohort.", persist_result=False, flow_run_name=_run_name)
def screen_cohort(inbox: str, cohort: str, settings: str = "", wait: bool = False) -> CohortOutcome:
    """Screen what is new or changed in `inbox`; a second command on the same cohort is refused, or waits."""
    from medad_core.inbox.cohort import CohortFolder
    from medad_core.inbox.lock import locked
    from medad_core.inbox.look import look

    folder, source, given = CohortFolder(cohort, Path(inbox)), Path(inbox).resolve(), settings_from_yaml(settings)
    with told("screen-cohort", folder.folder.name, given) as telling, locked(folder.folder, wait):
        folder.reconcile()
        parsed, fingerprint = _settled(folder, given)
        batches, left, stuck = [], folder.resume(source), None
        if left is not None:
            try:
                batches.append(_screen_batch(folder, source, left, parsed))
            except Suspect as suspect:
                stuck = suspect
        seen = look(source, parsed, folder.known_files())
        folder.write_ledger(source, seen)
        pending = folder.pending(seen, parsed.inbox.attempts)
        if stuck is not None:
            if pending == left.studies or len(left.studies) > FEW * parsed.data.cases_per_part:
                raise stuck
            folder.withdraw(left)
        if pending:
            batches.append(_screen_batch(folder, source, folder.plan_batch(source, pending, fingerprint, parsed), parsed))
            folder.write_ledger(source, seen)
        outcome = _outcome(folder, batches, seen)
        _tell(telling, folder, outcome)
        return outcome


def _settled(folder, settings: Settings) -> tuple[Settings, dict[str, str]]:
    """The settings with the precision that the cohort has, whatever `auto` would come to on this machine."""
    from medad_core.stages.models import run_fingerprint, settled_precision

    fingerprint = run_fingerprint(settings, folder.fingerprint())
    folder.check_fingerprint(fingerprint)
    models = settings.models.model_copy(update={"precision": settled_precision(fingerprint)})
    return settings.model_copy(update={"models": models}), fingerprint


def _screen_batch(folder, inbox: Path, plan, settings: Settings) -> Screened:
    """Run the stages on the batch's folder, and commit it."""
    run, text = str(folder.run_of(plan.number)), settings_to_yaml(settings)
    with one_heartbeat():
        for stage in (preprocess, maps, convert, generate):
            stage(run, text)
        note_run(str(inbox), run, settings)
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

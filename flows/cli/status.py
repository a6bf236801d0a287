"""`medad status`: where a run or a cohort stands, from its files alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rich.table import Table

from flows.cli.tables import plain_table, status_table
from medad_core.inbox.records import PRUNED, Batch, Ledger
from medad_core.run.info import read_run_info
from medad_core.run.inputs import Inputs
from medad_core.store import PART_STAGES, StageProgress, join, stage_of
from medad_core.store.files import read_bytes
from medad_core.store.listing import size_of
from medad_core.store.lock import holder
from medad_core.store.objects import is_object

RESULTS = (
    "predictions.parquet",
    "questions.parquet",
    "cases.parquet",
    "worklist.csv",
    "metrics.md",
    "report.html",
    "rejected.csv",
)
SHOWN = 20  # cases of a kind that are named; ledger.json has them all


def run_status(run: str) -> Iterator[Table | str]:
    """Raises StoreError where `run` is no run."""
    root = read_run_info(run).data_root
    yield f"{run}: cases of {root}"
    yield _stages(run)
    if is_object(root):
        yield _fetched(run)
    yield from (f"{name:<20} {'there' if size_of(join(run, name)) is not None else 'not yet'}" for name in RESULTS)
    if (note := read_bytes(join(run, PRUNED))) is not None:
        yield from note.decode(errors="replace").splitlines()


def _fetched(run: str) -> str:
    """How much of the volumes and masks was needed."""
    plan = stage_of(run, "slices").plan()
    parts = Inputs(run).read_all([part.number for part in plan.parts], plan.sha256)
    files = [file for _, part in parts for of_case in part.cases.values() for file in of_case]
    read = sum(file.read for file in files) / 1e6
    size = sum(file.size or 0 for file in files) / 1e6
    return f"of {len(files)} volumes and masks {read:,.1f} of {size:,.1f} MB were fetched"


def cohort_status(folder: str) -> Iterator[Table | str]:
    """Raises StoreError where a batch's record is damaged."""
    from medad_core.inbox.folder import CohortFolder  # what reads volumes takes a second

    cohort = CohortFolder(folder)
    ledger = cohort.ledger()
    busy = holder(folder)
    inbox = ledger.inbox if ledger else "an inbox"
    yield f"{folder}: studies of {inbox}, {f'screened now by {busy}' if busy else 'idle'}"
    yield _batches(cohort.batches())
    plan = cohort.open_batch()
    if plan is not None:
        state = "under way" if busy else "interrupted; the next `medad screen` finishes it"
        yield f"batch {plan.number}: {len(plan.studies)} studies, begun {plan.opened}, {state}"
        yield _stages(cohort.run_of(plan.number))
    newest = [screenings[-1] for screenings in cohort.histories().values()]
    screened = [screening for screening in newest if screening.state == "screened"]
    rejected = {screening.case_id: screening.reason for screening in newest if screening.state == "rejected"}
    slices = sum(screening.slices for screening in screened)
    predictions = join(folder, "predictions.parquet")
    yield f"{len(screened)} cases with {slices} slices in {predictions}; {len(rejected)} rejected"
    yield from _named("rejected", rejected)
    if ledger is not None:
        yield from _from_ledger(ledger)


def _from_ledger(ledger: Ledger) -> Iterator[str]:
    absent = [case_id for case_id, history in ledger.cases.items() if not history.present]
    waiting = f"{len(ledger.waiting)} studies waited"
    unusable = f"{len(ledger.unusable)} could not be used"
    yield f"when last looked ({ledger.looked}): {waiting}, {unusable}, {len(absent)} were gone from the inbox"
    yield from _named("waits", ledger.waiting)
    yield from _named("cannot be used", ledger.unusable)
    yield from _named("gone", dict.fromkeys(absent, "no longer in the inbox; its predictions stay"))


def _named(kind: str, cases: Mapping[str, str | None]) -> Iterator[str]:
    yield from (f"  {kind}: {case_id}: {reason}" for case_id, reason in list(cases.items())[:SHOWN])
    if len(cases) > SHOWN:
        yield f"  … and {len(cases) - SHOWN} more"


def _batches(batches: Iterable[Batch]) -> Table:
    table = plain_table("batch", "committed", "new", "revised", "again", "rejected", "changed", "slices")
    for column in table.columns[2:]:
        column.justify = "right"
    for batch in batches:
        screenings = batch.screenings
        new = sum(each.revision == each.attempt == 1 for each in screenings)
        revised = sum(each.revision > 1 and each.attempt == 1 for each in screenings)
        again = len(screenings) - new - revised
        rejected = sum(each.state == "rejected" for each in screenings)
        slices = sum(each.slices for each in screenings)
        counts = (new, revised, again, rejected, len(batch.changed), slices)
        table.add_row(str(batch.number), batch.committed, *map(str, counts))
    return table


def _stages(run: str) -> Table:
    """A stage at a time, whose books go before the next is opened: those of a large run take room."""
    return status_table((name, _progress(run, name)) for name in PART_STAGES)


def _progress(run: str, name: str) -> StageProgress | None:
    stage = stage_of(run, name)
    return stage.progress() if stage.find_plan() else None

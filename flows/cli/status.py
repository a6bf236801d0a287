"""`medad status`: where a run or a cohort stands, from its files alone."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from flows.cli.tables import plain_table, status_table
from medad_core.inbox.folder import CohortFolder
from medad_core.inbox.lock import holder
from medad_core.inbox.prune import NOTE
from medad_core.inbox.records import Batch, Ledger
from medad_core.stages.common import PART_STAGES, stage_of
from medad_core.store import join, read_run_info
from medad_core.store.files import read_bytes, size_of

RESULTS = ("predictions.parquet", "metrics.md", "report.html", "rejected.csv")
SHOWN = 20  # cases of a kind that are named; ledger.json has them all


def run_status(run: str) -> Iterator[Table | str]:
    """Raises StoreError where `run` is no run."""
    yield f"{run}: cases of {read_run_info(run).data_root}"
    yield _stages(run)
    yield from (f"{name:<20} {'there' if size_of(join(run, name)) is not None else 'not yet'}" for name in RESULTS)
    if (note := read_bytes(join(run, NOTE))) is not None:
        yield note.decode().strip()


def cohort_status(folder: str) -> Iterator[Table | str]:
    """Raises StoreError where a batch's record is damaged."""
    cohort = CohortFolder(folder)
    ledger, batches, plan, busy = cohort.ledger(), cohort.batches(), cohort.open_batch(), holder(cohort.folder)
    yield f"{folder}: studies of {ledger.inbox if ledger else 'an inbox'}, {f'screened now by {busy}' if busy else 'idle'}"
    yield _batches(batches)
    if plan is not None:
        yield f"batch {plan.number}: {len(plan.studies)} studies, begun {plan.opened}, {'under way' if busy else 'interrupted; the next `medad screen` finishes it'}"
        yield _stages(str(cohort.run_of(plan.number)))
    newest = [screenings[-1] for screenings in cohort.histories().values()]
    screened, rejected = ([each for each in newest if each.state == state] for state in ("screened", "rejected"))
    yield f"{len(screened)} cases with {sum(each.slices for each in screened)} slices in {cohort.folder / 'predictions.parquet'}; {len(rejected)} rejected"
    yield from _named("rejected", {each.case_id: each.reason for each in rejected})
    if ledger is not None:
        yield from _from_ledger(ledger)


def _from_ledger(ledger: Ledger) -> Iterator[str]:
    gone = {
        case_id: "no longer in the inbox; its predictions stay"
        for case_id, history in ledger.cases.items()
        if not history.present
    }
    yield f"when last looked ({ledger.looked}): {len(ledger.waiting)} studies waited, {len(ledger.unusable)} could not be used, {len(gone)} were gone from the inbox"
    for kind, cases in (("waits", ledger.waiting), ("cannot be used", ledger.unusable), ("gone", gone)):
        yield from _named(kind, cases)


def _named(kind: str, cases: dict[str, str]) -> Iterator[str]:
    yield from (f"  {kind}: {case_id}: {reason}" for case_id, reason in list(cases.items())[:SHOWN])
    if len(cases) > SHOWN:
        yield f"  … and {len(cases) - SHOWN} more"


def _batches(batches: tuple[Batch, ...]) -> Table:
    table = plain_table("batch", "committed", "new", "revised", "again", "rejected", "changed", "slices")
    for column in table.columns[2:]:
        column.justify = "right"
    for batch in batches:
        done = batch.screenings
        new = sum(each.revision == each.attempt == 1 for each in done)
        revised = sum(each.revision > 1 and each.attempt == 1 for each in done)
        rejected = sum(each.state == "rejected" for each in done)
        table.add_row(
            str(batch.number),
            batch.committed,
            *map(
                str,
                (
                    new,
                    revised,
                    len(done) - new - revised,
                    rejected,
                    len(batch.changed),
                    sum(each.slices for each in done),
                ),
            ),
        )
    return table


def _stages(run: str) -> Table:
    stages = [(name, stage_of(run, name)) for name in PART_STAGES]
    return status_table((name, stage.progress() if stage.find_plan() else None) for name, stage in stages)

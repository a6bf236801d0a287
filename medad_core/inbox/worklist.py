"""`COHORT/worklist.csv`: the worklists of all committed batches as one, in the same order by the same rule.

One decision: it is made of the `worklist.csv` of every batch each time, and of nothing that was kept. So it is never
out of date, also after somebody evaluated a batch again. A case stands in it once, with its newest content; one whose
newest content was rejected does not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from medad_core.errors import StoreError
from medad_core.facts.worklist import HEADS, urgency
from medad_core.inbox.batch import histories_of
from medad_core.inbox.records import Batch
from medad_core.media import read_csv, write_csv
from medad_core.store import join, write_text
from medad_core.store.files import read_bytes
from medad_core.store.listing import list_names

log = logging.getLogger(__name__)
WORKLIST = "worklist.csv"
COHORT_HEADS = (*HEADS, "batch")


def write_worklist(path: str, batches: Sequence[Batch], run_of: Callable[[int], str]) -> None:
    """Write the worklist to `path`, unless it is there as it would be written. Raises StoreError.

    `batches` are oldest first; `run_of` returns the run of a batch by number. Batches without a worklist, of an earlier
    version, are named in the log.
    """
    newest = {case_id: screenings[-1] for case_id, screenings in histories_of(batches).items()}
    rows = []
    for batch in batches:
        own = {case_id for case_id, last in newest.items() if (last.batch, last.state) == (batch.number, "screened")}
        rows += [{**row, "batch": str(batch.number)} for row in _rows_of(run_of(batch.number)) if row["case_id"] in own]
    rows.sort(key=urgency)
    text = write_csv(
        COHORT_HEADS, ([place, *(row[name] for name in COHORT_HEADS[1:])] for place, row in enumerate(rows, 1))
    )
    if read_bytes(path) != text.encode():
        write_text(path, text)


def read_worklist(path: str) -> list[dict[str, str]]:
    """The rows of a worklist, in their order; none where there is no such file. Raises StoreError."""
    try:
        return list(read_csv((read_bytes(path) or b"").decode("utf-8")))
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} is damaged ({error}); run `medad evaluate` on its folder") from error


def _rows_of(run: str) -> Iterator[dict[str, str]]:
    try:
        rows = read_worklist(join(run, WORKLIST))
    except StoreError as error:
        log.warning("%s", error)
        return
    if rows and set(rows[0]) == set(HEADS):
        yield from rows
    elif rows or WORKLIST not in list_names(run):
        log.warning("%s has no worklist that can be read; run `medad evaluate %s` to make it", run, run)

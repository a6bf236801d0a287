"""`COHORT/worklist.csv`: the worklists of all committed batches as one, in the same order by the same rule.

One decision: a case stands in it once, with its newest content; one whose newest content was rejected does not. The
rows of a batch are those of its own `worklist.csv`, or those that stand here already (`lists.py` says when they may).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from medad_core.errors import StoreError
from medad_core.facts.worklist import HEADS, urgency
from medad_core.inbox.batch import counting_of
from medad_core.inbox.records import Batch
from medad_core.media import read_csv, write_csv
from medad_core.store import join, write_text
from medad_core.store.files import read_bytes
from medad_core.store.listing import list_names

log = logging.getLogger(__name__)
WORKLIST = "worklist.csv"
COHORT_HEADS = (*HEADS, "batch")


def write_worklist(path: str, batches: Sequence[Batch], known: int, run_of: Callable[[int], str]) -> bool:
    """Write the worklist to `path`, unless it is there as it would be written. Raises StoreError.

    `batches` are oldest first; the file has the rows of the first `known` of them. `run_of` returns the run of a batch
    by number. Batches without a worklist, of an earlier version, are named in the log. Returns False if a worklist is
    there and the disk would not give it.
    """
    counting = counting_of(batches)
    own = {
        number: {case_id for case_id, last in cases.items() if last.state == "screened"}
        for number, cases in counting.items()
    }
    kept = read_worklist(path) if known else []
    rows = [row for row in kept if row["case_id"] in own[int(row["batch"])]]
    is_whole = True
    for batch in batches[known:]:
        try:
            found = _rows_of(run_of(batch.number))
        except StoreError as error:
            log.warning("%s", error)
            is_whole = is_whole and not error.may_pass
            continue
        rows += [{**row, "batch": str(batch.number)} for row in found if row["case_id"] in own[batch.number]]
    rows.sort(key=urgency)
    text = write_csv(
        COHORT_HEADS, ([place, *(row[name] for name in COHORT_HEADS[1:])] for place, row in enumerate(rows, 1))
    )
    if read_bytes(path) != text.encode():
        write_text(path, text)
    return is_whole


def read_worklist(path: str) -> list[dict[str, str]]:
    """The rows of a worklist, in their order; none where there is no such file. Raises StoreError."""
    try:
        return list(read_csv((read_bytes(path) or b"").decode("utf-8")))
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} is damaged ({error}); run `medad evaluate` on its folder") from error


def _rows_of(run: str) -> list[dict[str, str]]:
    """The rows of the worklist of a batch; none where it is of an earlier version. Raises StoreError."""
    rows = read_worklist(join(run, WORKLIST))
    if rows and set(rows[0]) == set(HEADS):
        return rows
    if rows or WORKLIST not in list_names(run):
        log.warning("%s has no worklist that can be read; run `medad evaluate %s` to make it", run, run)
    return []

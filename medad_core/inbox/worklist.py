"""`COHORT/worklist.csv`: the worklists of all committed batches as one, in the same order by the same rule.

One decision: a case stands in it once, with its newest content; one whose newest content was rejected does not. The
rows of a batch are those of its own `worklist.csv`, or those that stand here already (`lists.py` says when they may).
"""

from __future__ import annotations

import csv
import logging
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from medad_core.errors import StoreError
from medad_core.facts.worklist import HEADS, urgency
from medad_core.inbox.batch import counting_of
from medad_core.inbox.records import Batch
from medad_core.media import csv_cell, read_csv, write_csv
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
    counting = counting_of(batches[known:])
    before = read_bytes(path) or b""
    rows, is_whole = [], True
    for batch in batches[known:]:
        own = {case_id for case_id, last in counting[batch.number].items() if last.state == "screened"}
        try:
            found = _rows_of(run_of(batch.number))
        except StoreError as error:
            log.warning("%s", error)
            is_whole = is_whole and not error.may_pass
            continue
        rows += [{**row, "batch": str(batch.number)} for row in found if row["case_id"] in own]
    rows.sort(key=urgency)
    replaced = {case_id for cases in counting.values() for case_id in cases}
    kept = _entries_in(before.decode("utf-8"), replaced) if known else []
    entries = [f"{place},{entry}\n" for place, entry in enumerate(_merged(kept, rows), 1)]
    text = "".join([write_csv(COHORT_HEADS, []), *entries])
    if before != text.encode():
        write_text(path, text)
    return is_whole


def _entries_in(text: str, replaced: Collection[str]) -> list[str]:
    """The lines of a worklist without their places, and without those of the cases `replaced`. A row is a line."""
    lines = text.split("\n")[1:-1]
    ids = (row[1] for row in csv.reader(lines))
    gone = {csv_cell(case_id) for case_id in replaced}
    return [line.partition(",")[2] for line, case_id in zip(lines, ids, strict=True) if case_id not in gone]


def _merged(kept: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Lines without places and `rows` as such lines; both are in order, and so is the result."""
    lines = write_csv(COHORT_HEADS[1:], ([row[name] for name in COHORT_HEADS[1:]] for row in rows)).split("\n")[1:-1]
    at = 0
    for row, line in zip(rows, lines, strict=True):
        place = bisect_left(kept, urgency(row), lo=at, key=_urgency_of)
        yield from kept[at:place]
        yield line
        at = place
    yield from kept[at:]


def _urgency_of(entry: str) -> tuple:
    return urgency(next(read_csv(f"{','.join(COHORT_HEADS[1:])}\n{entry}")))


def read_worklist(path: str) -> list[dict[str, str]]:
    """The rows of a worklist, in their order; none where there is no such file. Raises StoreError."""
    try:
        return list(read_csv((read_bytes(path) or b"").decode("utf-8")))
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}); run `medad evaluate` on its folder") from error


def count_listed(path: str) -> int:
    """The number of rows of a worklist; a row is a line. Raises StoreError."""
    return max(0, (read_bytes(path) or b"").count(b"\n") - 1)


def _rows_of(run: str) -> list[dict[str, str]]:
    """The rows of the worklist of a batch; none where it is of an earlier version. Raises StoreError."""
    rows = read_worklist(join(run, WORKLIST))
    if rows and set(rows[0]) == set(HEADS):
        return rows
    if rows or WORKLIST not in list_names(run):
        log.warning("%s has no worklist that can be read; run `medad evaluate %s` to make it", run, run)
    return []

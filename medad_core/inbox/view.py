"""`COHORT/predictions.parquet`: the rows of the newest screening of every case, from all committed batches.

One decision: `_view.json` has its batches and its hash, written after it. The rows of a new batch are merged into the
file that was recorded. A file that is not that one, because it was damaged, edited, or not finished, is made again from
all batches, with the same rows.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from medad_core.data.names import patient_of
from medad_core.errors import StoreError
from medad_core.inbox.batch import PREDICTIONS, histories_of
from medad_core.inbox.records import Batch, Screening, View
from medad_core.store import COHORT_PREDICTIONS, join, read_table, sha256_file, write_bytes
from medad_core.store import PREDICTIONS as ROWS
from medad_core.store.files import parent_of, read_bytes
from medad_core.store.listing import stamp_of
from medad_core.store.tables import notes_in, read_groups, write_rows

log = logging.getLogger(__name__)
VIEW = "_view.json"
BATCHES_IN_VIEW = b"medad.batches"  # in the file's metadata: all that earlier versions recorded of it


def write_predictions(path: str, batches: Sequence[Batch], run_of: Callable[[int], str]) -> None:
    """Replace the file at `path`; do nothing if it is the recorded one of these batches, or there is no batch.

    `batches` are oldest first; `run_of` returns the run of a batch by number. A case whose newest content was rejected
    has no rows, because rows of its older content would be mistaken for the newer.

    Raises StoreError if the predictions of a batch that is read are not those that were committed.
    """
    numbers = tuple(batch.number for batch in batches)
    there = _recorded(path)
    if not batches or there == numbers or _is_earlier(path, numbers):
        return
    later = batches[len(there) :] if there == numbers[: len(there)] else batches
    newest = {case_id: screenings[-1] for case_id, screenings in histories_of(later).items()}
    tables = [_newest_rows(join(run_of(batch.number), PREDICTIONS), batch, newest) for batch in later]
    rows = pa.concat_tables(tables).sort_by([("case_id", "ascending"), ("slice_index", "ascending")])
    # Keep the metadata that tell pandas about the columns (a label is a nullable integer).
    metadata = {**(tables[-1].schema.metadata or {}), BATCHES_IN_VIEW: _listed(numbers)}
    before = read_groups(path) if len(later) < len(batches) else ()
    known = (_with_all_columns(table, COHORT_PREDICTIONS) for table in before)
    write_rows(path, merged(known, newest, rows), COHORT_PREDICTIONS.with_metadata(metadata))
    _record(path, numbers)


def merged(before: Iterable[pa.Table], replaced: Collection[str], rows: pa.Table) -> Iterator[pa.Table]:
    """The rows of `before` without those of the cases `replaced`, and `rows`, which are of these cases.

    `before` and `rows` are sorted by case, and so is the result.
    """
    gone = pa.array(sorted(replaced), pa.string())
    at = 0  # rows before this one are in the result
    for table in before:
        is_gone = pc.is_in(table["case_id"], gone)
        kept = table.filter(pc.invert(is_gone)) if pc.any(is_gone).as_py() else table
        start = 0
        while at < len(rows) and len(kept) and _case_of(rows, at) < _case_of(kept, len(kept) - 1):
            place = _first_after(kept, _case_of(rows, at), start)
            stop = _first_after(rows, _case_of(kept, place), at)
            yield from (kept.slice(start, place - start), rows.slice(at, stop - at))
            start, at = place, stop
        yield kept.slice(start)
    yield rows.slice(at)


def _case_of(table: pa.Table, row: int) -> str:
    return str(table["case_id"][row].as_py())


def _first_after(table: pa.Table, case_id: str, start: int) -> int:
    """The first row from `start` on whose case comes after `case_id`; no row is of this case."""
    names = table["case_id"]
    return bisect_left(range(len(names)), case_id, lo=start, key=lambda row: names[row].as_py())


def is_current(path: str, numbers: tuple[int, ...]) -> bool:
    """Whether the file at `path` is the recorded one, of the batches with these numbers. It is hashed.

    Of a cohort of an earlier version the file itself is taken for it, and recorded. Raises StoreError.
    """
    return _recorded(path) == numbers or _is_earlier(path, numbers)


def _recorded(path: str) -> tuple[int, ...]:
    """The batches in the file at `path`; none if it is not the file that was recorded."""
    data = read_bytes(_record_at(path))
    try:
        view = None if data is None else View.from_json(data)
    except ValueError:
        return ()
    if view is None or stamp_of(path) is None:
        return ()
    if sha256_file(path) != view.sha256:
        log.warning("%s is not the file that was written; it is made again from the batches", path)
        return ()
    return view.batches


def _is_earlier(path: str, numbers: tuple[int, ...]) -> bool:
    """Whether an earlier version, which recorded nothing, made the file at `path` of these batches; then record it."""
    is_earlier = stamp_of(_record_at(path)) is None and _batches_in(path) == _listed(numbers)
    if is_earlier:
        _record(path, numbers)
    return is_earlier


def _record(path: str, numbers: tuple[int, ...]) -> None:
    write_bytes(_record_at(path), View(batches=numbers, sha256=sha256_file(path)).to_json())


def _record_at(path: str) -> str:
    return join(parent_of(path), VIEW)


def _listed(numbers: tuple[int, ...]) -> bytes:
    return ",".join(map(str, numbers)).encode()


def _newest_rows(predictions: str, batch: Batch, newest: Mapping[str, Screening]) -> pa.Table:
    """Rows of the cases whose newest screening is in `batch`, with the columns `revision` and `batch`."""
    if sha256_file(predictions) != batch.predictions_sha256:
        raise StoreError(
            f"{predictions} is not the file that was committed; run `medad evaluate {parent_of(predictions)}` "
            "to make it again where nothing was pruned, or bring it back from a backup"
        )
    revision_of = {each.case_id: each.revision for each in batch.screenings if newest[each.case_id] == each}
    rows = _with_all_columns(read_table(predictions))
    rows = rows.filter(pc.is_in(rows["case_id"], pa.array(list(revision_of), pa.string())))
    revisions = pa.array([revision_of[case_id] for case_id in rows["case_id"].to_pylist()], pa.int32())
    numbers = pa.array([batch.number] * len(rows), pa.int32())
    return rows.append_column("revision", revisions).append_column("batch", numbers)


def _with_all_columns(rows: pa.Table, schema: pa.Schema = ROWS) -> pa.Table:
    """Rows with the columns of `schema`. Those of earlier versions lack patients, whom case ids say, and `unstable`."""
    if "patient" not in rows.column_names:
        patients = pa.array([patient_of(case_id) for case_id in rows["case_id"].to_pylist()], pa.string())
        rows = rows.append_column("patient", patients)
    if "unstable" not in rows.column_names:
        rows = rows.append_column("unstable", pa.nulls(len(rows), pa.bool_()))
    return rows.select(schema.names)


def _batches_in(path: str) -> bytes | None:
    """The batches in the file at `path`; None if there is no valid one."""
    try:
        return notes_in(path).get(BATCHES_IN_VIEW)
    except StoreError:
        return None

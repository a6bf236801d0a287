"""`COHORT/predictions.parquet`: the rows of the newest screening of every case, from all committed batches.

One decision: `_view.json` has its batches and its hash, written after it. A file that is not that one, because it was
damaged, edited, or not finished, is made again from the batches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medad_core.data.names import patient_of
from medad_core.errors import StoreError
from medad_core.inbox.batch import PREDICTIONS, histories_of
from medad_core.inbox.records import Batch, Screening, View
from medad_core.store import COHORT_PREDICTIONS, join, read_table, sha256_file, write_bytes, write_table
from medad_core.store import PREDICTIONS as ROWS
from medad_core.store.files import parent_of, read_bytes
from medad_core.store.listing import stamp_of

log = logging.getLogger(__name__)
VIEW = "_view.json"
BATCHES_IN_VIEW = b"medad.batches"  # in the file's metadata: all that earlier versions recorded of it


def write_predictions(path: str, batches: Sequence[Batch], run_of: Callable[[int], str]) -> None:
    """Replace the file at `path`; do nothing if it is the recorded one of these batches, or there is no batch.

    `batches` are oldest first; `run_of` returns the run of a batch by number. A case whose newest content was rejected
    has no rows, because rows of its older content would be mistaken for the newer.

    Raises StoreError if the predictions of a batch are not those that were committed.
    """
    numbers = tuple(batch.number for batch in batches)
    if not batches or is_current(path, numbers):
        return
    newest = {case_id: screenings[-1] for case_id, screenings in histories_of(batches).items()}
    tables = [_newest_rows(join(run_of(batch.number), PREDICTIONS), batch, newest) for batch in batches]
    rows = pa.concat_tables(tables).sort_by([("case_id", "ascending"), ("slice_index", "ascending")])
    # Keep the metadata that tell pandas about the columns (a label is a nullable integer).
    metadata = {**(tables[-1].schema.metadata or {}), BATCHES_IN_VIEW: _listed(numbers)}
    write_table(path, rows, COHORT_PREDICTIONS.with_metadata(metadata))
    _record(path, numbers)


def is_current(path: str, numbers: tuple[int, ...]) -> bool:
    """Whether the file at `path` is the recorded one, of the batches with these numbers. It is hashed.

    Of a cohort of an earlier version the file itself is taken for it, and recorded. Raises StoreError.
    """
    data = read_bytes(_record_at(path))
    if data is None:
        is_earlier = _batches_in(path) == _listed(numbers)
        if is_earlier:
            _record(path, numbers)
        return is_earlier
    try:
        view = View.from_json(data)
    except ValueError:
        return False
    if view.batches != numbers or stamp_of(path) is None:
        return False
    if sha256_file(path) != view.sha256:
        log.warning("%s is not the file that was written; it is made again from the batches", path)
        return False
    return True


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


def _with_all_columns(rows: pa.Table) -> pa.Table:
    """Rows of PREDICTIONS. Batches of earlier versions lack patients, which their case ids say, and `unstable`."""
    if "patient" not in rows.column_names:
        patients = pa.array([patient_of(case_id) for case_id in rows["case_id"].to_pylist()], pa.string())
        rows = rows.append_column("patient", patients)
    if "unstable" not in rows.column_names:
        rows = rows.append_column("unstable", pa.nulls(len(rows), pa.bool_()))
    return rows.select(ROWS.names)


def _batches_in(path: str) -> bytes | None:
    """The batches in the file at `path`; None if there is no valid one."""
    try:
        return (pq.read_schema(path).metadata or {}).get(BATCHES_IN_VIEW)
    except (OSError, pa.ArrowInvalid):
        return None

"""`COHORT/predictions.parquet`: the rows of the newest screening of every case, from all committed batches.

One decision: the file's metadata name its batches, so its footer shows whether it is up to date.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medad_core.data.names import patient_of
from medad_core.errors import StoreError
from medad_core.inbox.batch import PREDICTIONS, histories_of
from medad_core.inbox.records import Batch, Screening
from medad_core.store import COHORT_PREDICTIONS, read_table, sha256_file, write_table
from medad_core.store import PREDICTIONS as ROWS

BATCHES_IN_VIEW = b"medad.batches"


def write_predictions(path: str, batches: Sequence[Batch], run_of: Callable[[int], Path]) -> None:
    """Replace the file at `path`; do nothing if it is up to date, or there is no batch.

    `batches` are oldest first; `run_of` returns the run of a batch by number. A case whose newest content was rejected
    has no rows, because rows of its older content would be mistaken for the newer.

    Raises StoreError if the predictions of a batch are not those that were committed.
    """
    numbers = ",".join(str(batch.number) for batch in batches).encode()
    if not batches or _batches_in(path) == numbers:
        return
    newest = {case_id: screenings[-1] for case_id, screenings in histories_of(batches).items()}
    tables = [_newest_rows(str(run_of(batch.number) / PREDICTIONS), batch, newest) for batch in batches]
    rows = pa.concat_tables(tables).sort_by([("case_id", "ascending"), ("slice_index", "ascending")])
    # Keep the metadata that tell pandas about the columns (a label is a nullable integer).
    metadata = {**(tables[-1].schema.metadata or {}), BATCHES_IN_VIEW: numbers}
    write_table(path, rows, COHORT_PREDICTIONS.with_metadata(metadata))


def _newest_rows(predictions: str, batch: Batch, newest: Mapping[str, Screening]) -> pa.Table:
    """Rows of the cases whose newest screening is in `batch`, with the columns `revision` and `batch`."""
    if sha256_file(predictions) != batch.predictions_sha256:
        raise StoreError(f"{predictions} is not the file that was committed; bring it back from a backup")
    revision_of = {each.case_id: each.revision for each in batch.screenings if newest[each.case_id] == each}
    rows = _with_patients(read_table(predictions))
    rows = rows.filter(pc.is_in(rows["case_id"], pa.array(list(revision_of), pa.string())))
    revisions = pa.array([revision_of[case_id] for case_id in rows["case_id"].to_pylist()], pa.int32())
    numbers = pa.array([batch.number] * len(rows), pa.int32())
    return rows.append_column("revision", revisions).append_column("batch", numbers)


def _with_patients(rows: pa.Table) -> pa.Table:
    """Rows of PREDICTIONS; batches of earlier versions have no patients, and their case ids say them."""
    if "patient" in rows.column_names:
        return rows
    patients = pa.array([patient_of(case_id) for case_id in rows["case_id"].to_pylist()], pa.string())
    return rows.append_column("patient", patients).select(ROWS.names)


def _batches_in(path: str) -> bytes | None:
    """The batches in the file at `path`; None if there is no valid one."""
    try:
        return (pq.read_schema(path).metadata or {}).get(BATCHES_IN_VIEW)
    except (OSError, pa.ArrowInvalid):
        return None

"""Parquet files: one row group per case; rows are checked against the schema before they are written.

One decision: each case has its own row group. So one case is read without reading the whole file, and memory holds one
case at a time, however long the part is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from medad_core.errors import RowsError, StoreError, first_line
from medad_core.store.files import explained, local_name, new_file
from medad_core.store.objects import open_for_tables

Rows: TypeAlias = pa.Table | Iterable[pa.RecordBatch | pa.Table]
ROWS_OF_A_GROUP = 1 << 18  # of a file with the rows of many cases; a few of them are in memory at a time


def write_table(uri: str, table: pa.Table, schema: pa.Schema | None = None) -> None:
    """Write one complete Parquet file, durably; `schema`, if given, is enforced. Raises StoreError."""
    checked = conform(table, schema, uri) if schema is not None else table
    with new_file(uri) as temporary, explained("write", uri):
        pq.write_table(checked, temporary, compression="zstd")


def write_rows(uri: str, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write one complete Parquet file of all rows of `tables`, durably, without having all of them in memory.

    The row groups do not depend on where one table ends. Raises StoreError.
    """
    # A dictionary of floats, which hardly ever repeat, would take half of the time and be thrown away.
    repeated = [field.name for field in schema if not pa.types.is_floating(field.type)]
    held = schema.empty_table()
    with (
        new_file(uri) as temporary,
        explained("write", uri),
        pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=repeated) as writer,
    ):
        for table in tables:
            held = pa.concat_tables([held, conform(table, schema, uri)])
            whole = held.num_rows - held.num_rows % ROWS_OF_A_GROUP
            if whole:
                writer.write_table(held.slice(0, whole), row_group_size=ROWS_OF_A_GROUP)
                held = held.slice(whole)
        writer.write_table(held)


def read_groups(uri: str) -> Iterator[pa.Table]:
    """The rows of a Parquet file, one row group after another. Raises StoreError if it is damaged or absent."""
    with explained("read", uri), _damage_explained(uri), pq.ParquetFile(_source(uri), memory_map=False) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)


def notes_in(uri: str) -> dict[bytes, bytes]:
    """What is noted beside the rows of a Parquet file. Raises StoreError if it is damaged or absent."""
    with explained("read", uri), _damage_explained(uri), pq.ParquetFile(_source(uri), memory_map=False) as file:
        return dict(file.schema_arrow.metadata or {})


def read_table(uri: str, columns: Sequence[str] | None = None, case_id: str | None = None) -> pa.Table:
    """Read a Parquet file; with `case_id`, only the rows of that case. Raises StoreError if damaged or absent."""
    filters = [("case_id", "==", case_id)] if case_id is not None else None
    with explained("read", uri), _damage_explained(uri):
        return pq.read_table(
            _source(uri),
            columns=list(columns) if columns is not None else None,
            filters=filters,
            partitioning=None,
        )


def read_case_rows(uri: str, case_id: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows of one case of a part that `write_groups` wrote. Only its row group is read.

    Raises StoreError like `read_table`.
    """
    import pyarrow.compute as pc  # a tenth of a second, which `medad status` need not wait for

    with (
        explained("read", uri),
        _damage_explained(uri),
        pq.ParquetFile(_source(uri), memory_map=False) as file,
    ):
        place = file.schema_arrow.get_field_index("case_id")
        groups = [
            group for group in range(file.num_row_groups) if _may_hold(file.metadata.row_group(group), place, case_id)
        ]
        wanted = None if columns is None else [*dict.fromkeys((*columns, "case_id"))]
        rows = file.read_row_groups(groups, columns=wanted)
        rows = rows.filter(pc.equal(rows["case_id"], case_id))
        return rows if columns is None else rows.select(list(columns))


def _source(uri: str) -> Any:
    """What pyarrow reads a file from."""
    return local_name(uri) or open_for_tables(uri)


def _may_hold(group: Any, column: int, case_id: str) -> bool:
    """Whether a row group may have rows of a case. It may if it has no statistics of the column."""
    statistics = group.column(column).statistics
    return statistics is None or not statistics.has_min_max or statistics.min <= case_id <= statistics.max


@contextmanager
def _damage_explained(uri: str) -> Iterator[None]:
    try:
        yield
    except pa.ArrowInvalid as error:
        raise StoreError(f"cannot read {uri}: the file is damaged ({first_line(error)})") from error


def write_groups(path: Path, rows: Rows, schema: pa.Schema, where: str) -> tuple[int, list[str]]:
    """Write `rows` to the local `path`, one row group per case; returns the number of rows and the cases in order.

    The rows of a case must be adjacent, with increasing slice_index. Raises RowsError naming the case, StoreError if
    the disk fails. Errors raised by the iterable `rows` pass through unchanged.
    """
    count, cases = 0, []
    with explained("write", where):
        writer = pq.ParquetWriter(path, schema, compression="zstd")
    try:
        for case_id, group in _by_case(rows, schema, where):
            if case_id in cases:
                raise RowsError(f"{where}: rows of case {case_id!r} do not come together")
            _check_order(case_id, group, where)
            with explained("write", where):
                writer.write_table(group, row_group_size=group.num_rows)
            count += group.num_rows
            cases.append(case_id)
        with explained("write", where):
            writer.close()
    except BaseException:
        with suppress(OSError):  # the file is discarded; the first error is the one to report
            writer.close()
        raise
    return count, cases


def conform(rows: pa.Table | pa.RecordBatch, schema: pa.Schema, where: str) -> pa.Table:
    """`rows` with exactly the columns and types of `schema`. Raises RowsError naming the column that does not fit."""
    table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
    if sorted(table.column_names) != sorted(schema.names):
        missing = sorted(set(schema.names) - set(table.column_names))
        extra = sorted(set(table.column_names) - set(schema.names))
        raise RowsError(f"{where}: columns do not fit the schema: missing {missing}, unexpected {extra}")
    arrays = []
    for field in schema:
        column = table.column(field.name)
        if not field.nullable and column.null_count:
            raise RowsError(f"{where}: column {field.name} has {column.null_count} nulls and must not have any")
        try:
            arrays.append(column if column.type == field.type else column.cast(field.type))
        except pa.ArrowException as error:
            raise RowsError(f"{where}: column {field.name} is not {field.type}: {first_line(error)}") from error
    return pa.Table.from_arrays(arrays, schema=schema)


def _by_case(rows: Rows, schema: pa.Schema, where: str) -> Iterator[tuple[str, pa.Table]]:
    """Consecutive rows with the same case_id, joined across record batches."""
    current = ""
    held: list[pa.Table] = []
    for batch in [rows] if isinstance(rows, pa.Table) else rows:
        table = conform(batch, schema, where)
        for case_id, start, stop in _runs(table.column("case_id").to_pylist()):
            if held and case_id != current:
                yield current, pa.concat_tables(held)
                held = []
            current = case_id
            held.append(table.slice(start, stop - start))
    if held:
        yield current, pa.concat_tables(held)


def _runs(values: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    start = 0
    for stop in range(1, len(values) + 1):
        if stop == len(values) or values[stop] != values[start]:
            yield values[start], start, stop
            start = stop


def _check_order(case_id: str, group: pa.Table, where: str) -> None:
    indices = group.column("slice_index").to_pylist()
    keys = indices
    if "question" in group.column_names:
        keys = list(zip(indices, group.column("question").to_pylist(), strict=True))
    falls = any(later < earlier for earlier, later in pairwise(indices))
    if falls or len(set(keys)) < len(keys):
        raise RowsError(f"{where}: slice_index of case {case_id!r} does not rise: keys must be unique and in order")

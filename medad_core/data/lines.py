"""The lines of a CSV or TSV file that a person made, with where each stands.

One decision: it is read strictly. A line with a field too few, or an open quote, moves a patient's name into the next
column, and nothing after it says so.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from medad_core.errors import UsageError
from medad_core.store.regular import read_utf8


def read_lines(
    path: str | Path, named: str, check_columns: Callable[[Sequence[str]], None]
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """For every line where it stands, as `NAMED, line N`, and its fields by column.

    `check_columns` gets the names of the first line, and raises for those that it cannot take. Raises UsageError for a
    file that is no UTF-8 or no CSV, a column that occurs twice, and a line with another number of fields.
    """
    try:
        text = read_utf8(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{named}: cannot be read as UTF-8 ({error}); save it as CSV in UTF-8") from error
    delimiter = "\t" if str(path).lower().endswith(".tsv") else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = reader.fieldnames or ()
        check_columns(names)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(f"{named}: the column {twice[0]!r} occurs twice; keep one")
        for row in reader:
            where = f"{named}, line {reader.line_num}"
            if None in row or None in row.values():
                raise UsageError(f"{where}: has another number of fields than the first line")
            yield where, row
    except csv.Error as error:
        raise UsageError(f"{named}, line {reader.line_num}: {error}") from error

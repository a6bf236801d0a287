"""Who the patient of a case is, when, and with which pathology, where no name or layout says it: a table of cases.

One decision: with such a table, a case that it does not name is refused. Taken for a patient of its own, it could be
the second visit of one that is trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medad_core.data.cases import Discovery, Rejection
from medad_core.data.lines import read_lines
from medad_core.data.names import canonical
from medad_core.data.visits import check_date
from medad_core.errors import UsageError
from medad_core.media import csv_value

_ID = ("case_id", "participant_id")  # the second is what BIDS calls it in participants.tsv
_SAID = ("visit", "date", "pathology")


def with_patients(discovery: Discovery, table: str) -> Discovery:
    """The same cases with what a CSV or TSV file says of them; those that it does not name are rejected.

    Columns: `case_id` (or `participant_id`), `patient`, and if they are there `visit`, `date` (as 2024-01-31) and
    `pathology`; others are not read. `n/a`, as BIDS writes it, is none of them. A case with a date and no visit has the
    date for its visit. Raises UsageError for a file that cannot be read, lacks a column, has two for the case, names a
    case twice, or has a date in another form.
    """
    patients = _read(Path(table))
    cases = []
    rejected = list(discovery.rejected)
    for case in discovery.cases:
        row = patients.get(case.case_id)
        if row is None:
            reason = f"{Path(table).name} has no line for this case; add one"
            rejected.append(Rejection(case.case_id, reason))
        else:
            cases.append(
                replace(
                    case,
                    patient=canonical(row["patient"]),
                    visit=row.get("visit", "") or row.get("date", ""),
                    date=row.get("date", ""),
                    pathology=row.get("pathology", ""),
                )
            )
    ordered = sorted(rejected, key=lambda item: (item.case_id, item.reason))
    return replace(discovery, cases=tuple(cases), rejected=tuple(ordered))


def _known(text: str) -> str:
    return "" if text.casefold() == "n/a" else text


def _read(path: Path) -> dict[str, Mapping[str, str]]:
    named = f"data.patients={path}"

    def check_columns(names: Sequence[str]) -> None:
        if not set(_ID) & set(names) or "patient" not in names:
            raise UsageError(f"{named}: needs the columns case_id and patient")
        if set(_ID) <= set(names):
            raise UsageError(f"{named}: has the columns {' and '.join(_ID)}; keep the one that names the cases")

    patients: dict[str, Mapping[str, str]] = {}
    for where, row in read_lines(path, named, check_columns):
        fields = {name: csv_value(text.strip()) for name, text in row.items()}
        fields |= {name: _known(fields[name]) for name in _SAID if name in fields}
        check_date(fields.get("date", ""), where)
        case_id = canonical(fields[next(name for name in _ID if name in fields)])
        if not case_id or not fields["patient"]:
            raise UsageError(f"{where}: case or patient is empty")
        if case_id in patients:
            raise UsageError(f"{where}: case {case_id} occurs twice")
        patients[case_id] = fields
    return patients

"""A table of files instead of a folder: the way out for every layout that nobody thought of.

One decision: the table that `medad inspect` writes is the table that `medad screen` takes. Somebody who corrects it has
the last word: no layout is asked any more. It is strict, so a typing error is refused and not guessed at.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from stat import S_ISREG

from medad_core.data.cases import Case, Discovery, PassedOver, Rejection, VolumeRef
from medad_core.data.identity import Identity, identity
from medad_core.data.lines import read_lines
from medad_core.data.names import MASK, MODALITIES, canonical
from medad_core.data.visits import check_date
from medad_core.errors import StoreError, UsageError
from medad_core.media import csv_value, write_csv
from medad_core.store.files import absolute, parent_of, write_text
from medad_core.store.objects import is_object
from medad_core.store.regular import facts_at

# What the table says; the columns after them are computed, shown, and not read.
SAID = ("case_id", "patient", "visit", "date", "modality", "role", "path", "channel", "tumour_labels", "pathology")
SHOWN = ("layout", "shape", "spacing_mm", "orientation", "grid", "checks", "verdict", "reason")
COLUMNS = (*SAID, *SHOWN)
VOLUME, TUMOUR_MASK, NOT_USED, REFUSED = "volume", "tumour mask", "passed over", "refused"
_NEEDED = ("case_id", "patient", "modality", "role", "path")

Row = Mapping[str, str]


def is_table(path: str | Path) -> bool:
    """Whether DATA is a table of files and not a folder."""
    if not str(path).lower().endswith((".csv", ".tsv")):
        return False
    try:
        return S_ISREG(facts_at(path).st_mode)
    except OSError:
        return False


def dataset_root(data: str | Path) -> str:
    """The folder that the files of DATA are relative to: DATA itself, or the folder of a table.

    A link keeps its own name: it may have been made to hide that of its target.
    """
    path = absolute(data)
    return parent_of(path) if is_table(path) else path


def write_case_table(path: str | Path, rows: Iterable[Row], root: str | Path) -> None:
    """Write rows with COLUMNS as CSV in UTF-8. Raises UsageError where it cannot be written.

    Paths of the rows are relative to `root`. In the table they are relative to its own folder, where they lie in it,
    else absolute.
    """
    folder = os.path.dirname(os.path.abspath(path))
    written = ({**row, "path": _as_written(os.path.join(root, row["path"]), folder)} for row in rows)
    cells = ([row.get(name) for name in COLUMNS] for row in written)
    try:
        write_text(str(path), write_csv(COLUMNS, cells))
    except StoreError as error:
        raise UsageError(f"{error}; choose another --out") from error


def _as_written(path: str, folder: str) -> str:
    return path.removeprefix(f"{folder}/")


def read_case_table(path: str | Path, modality: str) -> Discovery:
    """The cases that a table says. Raises UsageError naming the line for everything that is not clear."""
    path = str(path)
    lines = _Lines(path)
    for where, row in _rows(path):
        lines.take(where, row)
    cases = lines.cases()
    without = [case.case_id for case in cases if modality not in case.volumes]
    if without:
        raise UsageError(f"{path}: no {modality} volume for {', '.join(without[:5])}; add its line")
    if not cases:
        raise UsageError(f"{path}: no line has the role {VOLUME!r}; nothing is there to screen")
    return Discovery(tuple(cases), tuple(lines.rejected), tuple(lines.passed_over))


class _Lines:
    """What the lines of a table say so far."""

    def __init__(self, path: str) -> None:
        self.folder = parent_of(absolute(path))
        self.passed_over: list[PassedOver] = []
        self.rejected: list[Rejection] = []
        self._files: dict[str, dict[str, VolumeRef]] = defaultdict(dict)
        self._first: dict[str, Row] = {}
        self._labels: dict[str, tuple[int, ...]] = {}
        self._owners: dict[tuple[Identity | str, int | None], str] = {}

    def take(self, where: str, row: Row) -> None:
        """Take a line. Raises UsageError where it contradicts an earlier one."""
        place = _resolved(self.folder, row["path"])
        reason = row.get("reason") or "the table says so"
        if row["role"] == NOT_USED:
            self.passed_over.append(PassedOver(place, reason, is_explained=True))
        elif row["role"] == REFUSED:
            self.rejected.append(Rejection(row["case_id"], reason, (("", place),)))
        else:
            self._take_file(where, row, VolumeRef(place, _channel(where, row)))

    def _take_file(self, where: str, row: Row, ref: VolumeRef) -> None:
        case_id = canonical(row["case_id"])
        _check_same_patient(where, row, self._first.setdefault(case_id, row))
        kind = MASK if row["role"] == TUMOUR_MASK else row["modality"]
        if kind in self._files[case_id]:
            raise UsageError(f"{where}: case {case_id} has two files for {kind}; keep one line")
        owner = self._owners.setdefault((_which(ref.path, kind), ref.channel), case_id)
        if owner != case_id:
            raise UsageError(f"{where}: {row['path']} is a file of case {owner} too; give every case its own files")
        self._files[case_id][kind] = ref
        if row.get("tumour_labels"):
            self._labels[case_id] = _label_numbers(where, row["tumour_labels"])

    def cases(self) -> list[Case]:
        """The cases, sorted by case_id."""
        return [
            _case(case_id, self._files[case_id], row, self._labels.get(case_id))
            for case_id, row in sorted(self._first.items())
        ]


def _resolved(folder: str, path: str) -> str:
    """The whole name of a file of a table in `folder`: it may be relative, absolute, or a URI."""
    if is_object(path) or not is_object(folder):
        return path if is_object(path) else os.path.normpath(os.path.join(folder, path))
    scheme, _, place = folder.partition("://")
    return f"{scheme}://{os.path.normpath(f'{place}/{path}')}"


def _which(path: str, kind: str) -> Identity | str:
    """What is the same for every name of a file. Masks that a store keeps once, because they are equal, are several."""
    if is_object(path):
        return path
    try:
        return os.path.realpath(path) if kind == MASK else identity(os.stat(path))
    except OSError:  # its case is rejected when it is read
        return os.path.realpath(path)


def _rows(path: str) -> Iterator[tuple[str, Row]]:
    """Every line with where it stands, for messages."""

    def check_columns(names: Sequence[str]) -> None:
        unknown = [name for name in names if name not in COLUMNS]
        missing = [name for name in _NEEDED if name not in names]
        if unknown or missing:
            what = f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}"
            known = f"needed are {', '.join(_NEEDED)}, known {', '.join(COLUMNS)}"
            raise UsageError(f"{path}: wrong columns ({what}); {known}")

    for where, row in read_lines(path, str(path), check_columns):
        stripped = {name: csv_value(text if name == "path" else text.strip()) for name, text in row.items()}
        _check_row(where, stripped)
        yield where, stripped


def _check_row(where: str, row: Row) -> None:
    roles = (VOLUME, TUMOUR_MASK, NOT_USED, REFUSED)
    if row["role"] not in roles:
        raise UsageError(f"{where}: role is {row['role']!r}; give one of {', '.join(roles)}")
    if "\0" in row["path"]:
        raise UsageError(f"{where}: path holds the character of number 0, which no path has; save the table again")
    if row["role"] in (NOT_USED, REFUSED):
        return
    empty = [name for name in ("case_id", "patient", "path") if not row[name]]
    if empty:
        raise UsageError(f"{where}: {empty[0]} is empty")
    check_date(row.get("date", ""), where)
    if row["role"] == VOLUME and row["modality"] not in MODALITIES:
        raise UsageError(f"{where}: modality is {row['modality']!r}; give one of {', '.join(MODALITIES)}")


def _check_same_patient(where: str, row: Row, first: Row) -> None:
    for name in ("patient", "visit", "date", "pathology"):
        if row.get(name, "") != first.get(name, ""):
            raise UsageError(
                f"{where}: this line gives case {row['case_id']} the {name} {row.get(name)!r}, an earlier line "
                f"{first.get(name)!r}; give all its lines the same"
            )


def _channel(where: str, row: Row) -> int | None:
    text = row.get("channel", "")
    if not text:
        return None
    if not text.isdecimal():
        raise UsageError(f"{where}: channel is {text!r}; give a number from 0, or nothing for a 3-D file")
    return int(text)


def _label_numbers(where: str, text: str) -> tuple[int, ...]:
    words = text.split()
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"{where}: tumour_labels is {text!r}; give whole numbers above 0 with spaces between")
    return tuple(map(int, words))


def _case(case_id: str, files: Mapping[str, VolumeRef], row: Row, labels: tuple[int, ...] | None) -> Case:
    return Case(
        case_id=case_id,
        volumes={kind: ref for kind, ref in files.items() if kind != MASK},
        mask=files.get(MASK),
        patient=canonical(row["patient"]),
        visit=row.get("visit", ""),
        layout="table",
        tumour_labels=labels,
        pathology=row.get("pathology", ""),
        date=row.get("date", ""),
    )

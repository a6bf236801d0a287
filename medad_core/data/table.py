"""A table of files instead of a folder: the way out for every layout that nobody thought of.

One decision: the table that `medad inspect` writes is the table that `medad screen` takes. Somebody who corrects it has
the last word: no layout is asked any more. It is strict, so a slip of the pen is refused and not guessed at.
"""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from medad_core.data.cases import Case, Discovery, PassedOver, VolumeRef
from medad_core.data.names import MASK, MODALITIES, canonical
from medad_core.errors import UsageError

# What the table says; the columns after them are computed, shown, and not read.
SAID = ("case_id", "patient", "visit", "modality", "role", "path", "channel", "tumour_labels")
SHOWN = ("layout", "shape", "spacing_mm", "orientation", "grid", "checks", "verdict", "reason")
COLUMNS = (*SAID, *SHOWN)
VOLUME, TUMOUR_MASK, NOT_USED = "volume", "tumour mask", "passed over"
_NEEDED = ("case_id", "patient", "modality", "role", "path")

Row = Mapping[str, str]


def is_table(path: str | Path) -> bool:
    """Whether DATA is a table of files and not a folder."""
    return Path(path).suffix.lower() in (".csv", ".tsv") and Path(path).is_file()


def dataset_root(data: str | Path) -> Path:
    """The folder that the files of DATA are relative to: DATA itself, or the folder of a table.

    A link keeps its own name: it may have been made to hide that of its target.
    """
    path = Path(os.path.abspath(data))
    return path.parent if is_table(path) else path


def write_case_table(path: str | Path, rows: Iterable[Row]) -> None:
    """Write rows with COLUMNS as CSV in UTF-8. Raises UsageError where it cannot be written."""
    try:
        with open(path, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; choose another --out") from error


def read_case_table(path: str | Path, modality: str) -> Discovery:
    """The cases that a table says. Raises UsageError naming the line for everything that is not clear."""
    path = Path(path)
    files: dict[str, dict[str, VolumeRef]] = defaultdict(dict)
    first: dict[str, Row] = {}
    labels: dict[str, tuple[int, ...]] = {}
    passed_over = []
    for where, row in _rows(path):
        place = os.path.normpath(path.parent.absolute() / row["path"])
        if row["role"] == NOT_USED:
            passed_over.append(PassedOver(place, row.get("reason") or "the table says so", is_explained=True))
            continue
        case_id = canonical(row["case_id"])
        _check_same_patient(where, row, first.setdefault(case_id, row))
        kind = MASK if row["role"] == TUMOUR_MASK else row["modality"]
        if kind in files[case_id]:
            raise UsageError(f"{where}: case {case_id} has two files for {kind}; keep one line")
        files[case_id][kind] = VolumeRef(place, _channel(where, row))
        if row.get("tumour_labels"):
            labels[case_id] = _labels(where, row["tumour_labels"])
    cases = [_case(case_id, files[case_id], row, labels.get(case_id)) for case_id, row in first.items()]
    without = [case.case_id for case in cases if modality not in case.volumes]
    if without:
        raise UsageError(f"{path}: no {modality} volume for {', '.join(without[:5])}; add its line")
    if not cases:
        raise UsageError(f"{path}: no line has the role {VOLUME!r}; nothing is there to screen")
    return Discovery(tuple(sorted(cases, key=lambda case: case.case_id)), (), tuple(passed_over))


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Every line with where it stands, for messages."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # a spreadsheet writes a mark at the start
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as UTF-8 ({error}); save it as CSV in UTF-8") from error
    reader = csv.DictReader(text.splitlines(), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    _check_columns(path, reader.fieldnames or ())
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise UsageError(f"{where}: has another number of fields than the first line")
            stripped = {name: text.strip() for name, text in row.items()}
            _check_row(where, stripped)
            yield where, stripped
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: {error}") from error


def _check_columns(path: Path, names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in COLUMNS]
    missing = [name for name in _NEEDED if name not in names]
    if unknown or missing or len(set(names)) != len(names):
        what = f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing) or 'one stands twice'}"
        raise UsageError(f"{path}: wrong columns ({what}); needed are {', '.join(_NEEDED)}, known {', '.join(COLUMNS)}")


def _check_row(where: str, row: Row) -> None:
    roles = (VOLUME, TUMOUR_MASK, NOT_USED)
    if row["role"] not in roles:
        raise UsageError(f"{where}: role is {row['role']!r}; give one of {', '.join(roles)}")
    if row["role"] == NOT_USED:
        return
    empty = [name for name in ("case_id", "patient", "path") if not row[name]]
    if empty:
        raise UsageError(f"{where}: {empty[0]} is empty")
    if row["role"] == VOLUME and row["modality"] not in MODALITIES:
        raise UsageError(f"{where}: modality is {row['modality']!r}; give one of {', '.join(MODALITIES)}")


def _check_same_patient(where: str, row: Row, first: Row) -> None:
    for name in ("patient", "visit"):
        if row.get(name, "") != first.get(name, ""):
            raise UsageError(
                f"{where}: case {row['case_id']} is of {name} {row.get(name)!r}, in an earlier line of "
                f"{first.get(name)!r}; give all its lines the same"
            )


def _channel(where: str, row: Row) -> int | None:
    text = row.get("channel", "")
    if not text:
        return None
    if not text.isdecimal():
        raise UsageError(f"{where}: channel is {text!r}; give a number from 0, or nothing for a 3-D file")
    return int(text)


def _labels(where: str, text: str) -> tuple[int, ...]:
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
    )

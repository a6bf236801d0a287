"""Scans an inbox: which complete studies are in it, and their content.

One decision: a study is taken only if all its files are complete and have not changed for `inbox.settle_s`. Every other
study waits for the next scan, with the reason. Files with an unchanged stamp are not read again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from medad_core.config import Settings
from medad_core.data.cases import Case, Rejection, VolumeRef
from medad_core.data.nifti import UNREADABLE, hash_whole
from medad_core.data.source import files_root, find_cases
from medad_core.errors import CaseError, StoreError, TruncatedError
from medad_core.inbox.records import Stamp, StoredFile, Study
from medad_core.run.cohort import below, place_of
from medad_core.store import sha256_file
from medad_core.store.files import name_of
from medad_core.store.listing import at_once
from medad_core.store.regular import facts_at

log = logging.getLogger(__name__)
READERS = 8  # hashing releases the GIL, and network folders are slow if files are read one by one


@dataclass(frozen=True)
class StudyProblem:
    """Why a study was not taken, and whether the next scan may take it."""

    case_id: str
    reason: str
    may_pass: bool


@dataclass(frozen=True)
class InboxScan:
    """The content of an inbox: its studies by case_id, and the reasons of those that were not taken.

    A `waiting` study may be complete at the next scan; an `unusable` one needs a person to repair it. Every scan checks
    both again.
    """

    studies: tuple[Study, ...]
    waiting: dict[str, str]
    unusable: dict[str, str]


def scan_inbox(inbox: str | Path, settings: Settings, known: Mapping[str, StoredFile]) -> InboxScan:
    """Every study below `inbox`. `known` has the files of an earlier scan, by path.

    Paths are relative to the inbox; with pseudonyms, to the folder of its links. An empty inbox is not an error. Raises
    UsageError if the inbox is missing.
    """
    modality = settings.data.modality
    max_gib = settings.data.max_gib
    discovery = find_cases(inbox, settings.data, may_be_empty=True)
    root = files_root(inbox, settings.data)
    if known and not discovery.cases and not discovery.rejected:
        log.warning("%s is empty now, %d files were there at the last look; is it mounted?", inbox, len(known))
    found = at_once(lambda case: _stamps(case, modality), discovery.cases, root)
    stamps = {case.case_id: stamps for case, stamps in zip(discovery.cases, found, strict=True)}
    _let_settle(stamps.values(), settings.inbox.settle_s)

    def read(case: Case) -> Study | StudyProblem:
        return _read_study(root, case, modality, stamps[case.case_id], known, max_gib)

    with ThreadPoolExecutor(READERS) as pool:
        results = list(pool.map(read, discovery.cases))
    problems = [result for result in results if isinstance(result, StudyProblem)]
    return InboxScan(
        studies=tuple(result for result in results if isinstance(result, Study)),
        waiting=_reasons(problem for problem in problems if problem.may_pass),
        unusable=_reasons([*discovery.rejected, *(problem for problem in problems if not problem.may_pass)]),
    )


def stamp_of(path: str) -> Stamp | None:
    """The stamp of a file, None if there is no such file."""
    try:
        facts = facts_at(path)
    except OSError:
        return None
    return Stamp(size=facts.st_size, mtime_ns=facts.st_mtime_ns, ctime_ns=facts.st_ctime_ns, inode=facts.st_ino)


def unchanged(inbox: str, study: Study) -> bool:
    """Whether the files of a study still have the content that was hashed."""
    return all(_has_content(place_of(inbox, file.path), file) for file in study.files)


def _has_content(path: str, file: StoredFile) -> bool:
    """Compare hashes if the stamp differs: a backup by hard links or a chmod changes ctime, not the content."""
    stamp = stamp_of(path)
    if stamp is None or stamp.size != file.stamp.size:
        return False
    if stamp == file.stamp:
        return True
    try:
        return sha256_file(path) == file.sha256
    except StoreError:
        log.warning("%s cannot be read any more; the next scan checks its study again", path)
        return False


def _reasons(problems: Iterable[StudyProblem | Rejection]) -> dict[str, str]:
    """Reasons by case_id; several reasons of one case are joined."""
    reasons: dict[str, str] = {}
    for problem in problems:
        earlier = reasons.get(problem.case_id)
        reasons[problem.case_id] = problem.reason if earlier is None else f"{earlier}; {problem.reason}"
    return reasons


def _refs(case: Case, modality: str) -> tuple[VolumeRef, ...]:
    volume = case.volumes[modality]
    return (volume,) if case.mask is None else (volume, case.mask)


def _stamps(case: Case, modality: str) -> tuple[Stamp, ...] | None:
    """Stamps of all files of a case, None if one is missing."""
    stamps = [stamp_of(ref.path) for ref in _refs(case, modality)]
    present = tuple(stamp for stamp in stamps if stamp is not None)
    return present if len(present) == len(stamps) else None


def _let_settle(stamps: Iterable[tuple[Stamp, ...] | None], settle_s: float) -> None:
    """Wait once, until the youngest file is old enough.

    If the file server's clock is ahead, this waits for `settle_s`, but not longer.
    """
    files = [stamp for of_case in stamps for stamp in of_case or ()]
    youngest = max((max(stamp.mtime_ns, stamp.ctime_ns) / 1e9 for stamp in files), default=0.0)
    age_s = time.time() - youngest
    time.sleep(min(settle_s, max(0.0, settle_s - age_s)))


def _read_study(
    inbox: str,
    case: Case,
    modality: str,
    before: tuple[Stamp, ...] | None,
    known: Mapping[str, StoredFile],
    max_gib: float,
) -> Study | StudyProblem:
    """The study with the hashes of its files; a StudyProblem if their stamps differ from `before`."""
    try:
        files = [_read_file(inbox, case.case_id, ref, known, max_gib) for ref in _refs(case, modality)]
    except Exception as error:  # an error of one study must not stop the others
        at_fault = isinstance(error, CaseError) and not isinstance(error, TruncatedError)
        return StudyProblem(case.case_id, _one_line(error), may_pass=not at_fault)
    if tuple(file.stamp for file in files) != before or _stamps(case, modality) != before:
        return StudyProblem(case.case_id, "its files are still changing", may_pass=True)
    return Study(
        case_id=case.case_id,
        volume=files[0],
        mask=files[1] if len(files) > 1 else None,
        patient=case.patient,
        visit=case.visit or None,
        layout=case.layout or None,
        tumour_labels=case.tumour_labels,
        pathology=case.pathology or None,
        date=case.date or None,
    )


def _one_line(error: Exception) -> str:
    if isinstance(error, CaseError):
        text = error.reason
    elif isinstance(error, StoreError):
        text = str(error)
    else:
        text = repr(error)
    return " ".join(text.split())


def _read_file(inbox: str, case_id: str, ref: VolumeRef, known: Mapping[str, StoredFile], max_gib: float) -> StoredFile:
    """The content of a file: the known hash if the stamp is the same, else a new hash."""
    name = name_of(ref.path)
    path = below(inbox, ref.path)
    stamp = stamp_of(ref.path)
    remembered = known.get(path)
    if remembered is not None and (remembered.stamp, remembered.channel) == (stamp, ref.channel):
        return remembered
    try:
        content = hash_whole(case_id, ref.path, max_gib)
    except OSError as error:
        raise StoreError(f"{name}: {UNREADABLE} ({error.strerror})") from error
    if stamp is None:
        raise StoreError(f"{name}: appeared during the scan")
    return StoredFile(path=path, channel=ref.channel, stamp=stamp, sha256=content)

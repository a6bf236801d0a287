"""Scanning an inbox: which studies are in it, whole, and of which content.

One decision: a study is taken only when all its files were whole and have not changed for `inbox.settle_s`. Anything
else waits for the next scan, with the reason. Files whose stamp is the one remembered are not read again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from medad_core.config import Settings
from medad_core.data.cases import Case, Rejection, VolumeRef
from medad_core.data.discovery import discover
from medad_core.data.nifti import UNREADABLE, hash_whole
from medad_core.errors import CaseError, StoreError, TruncatedError
from medad_core.inbox.records import Stamp, StoredFile, Study
from medad_core.store import sha256_file

log = logging.getLogger(__name__)
READERS = 8  # hashing releases the GIL, and network folders answer slowly one file at a time


@dataclass(frozen=True)
class Fault:
    """Why a study was not taken, and whether the next scan may take it."""

    case_id: str
    reason: str
    may_pass: bool


@dataclass(frozen=True)
class InboxScan:
    """What an inbox holds: its studies by case_id, and the reasons of those that were not taken.

    A study that is `waiting` may be whole next time, an `unusable` one needs somebody to do something. Every scan looks
    at both again.
    """

    studies: tuple[Study, ...]
    waiting: dict[str, str]
    unusable: dict[str, str]


def scan_inbox(inbox: Path, settings: Settings, known: Mapping[str, StoredFile]) -> InboxScan:
    """Every study below `inbox`. `known` are the files of an earlier scan, by path relative to the inbox.

    Raises UsageError if the inbox is missing. An empty one is no error: nothing has come yet.
    """
    modality = settings.data.modality
    discovery = discover(inbox, modality, may_be_empty=True)
    if known and not discovery.cases and not discovery.rejected:
        log.warning("%s is empty now, %d files were there at the last look; is it mounted?", inbox, len(known))
    stamps = {case.case_id: _stamps(case, modality) for case in discovery.cases}
    _let_settle(stamps.values(), settings.inbox.settle_s)

    def read(case: Case) -> Study | Fault:
        return _read_study(inbox, case, modality, stamps[case.case_id], known)

    with ThreadPoolExecutor(READERS) as pool:
        results = list(pool.map(read, discovery.cases))
    faults = [result for result in results if isinstance(result, Fault)]
    return InboxScan(
        studies=tuple(result for result in results if isinstance(result, Study)),
        waiting=_reasons(fault for fault in faults if fault.may_pass),
        unusable=_reasons([*discovery.rejected, *(fault for fault in faults if not fault.may_pass)]),
    )


def stamp_of(path: Path) -> Stamp | None:
    """How the file lies on disk, None if there is none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return Stamp(size=facts.st_size, mtime_ns=facts.st_mtime_ns, ctime_ns=facts.st_ctime_ns, inode=facts.st_ino)


def unchanged(inbox: Path, study: Study) -> bool:
    """Whether the files of a study still have the content that was hashed."""
    return all(_has_content(inbox / file.path, file) for file in study.files)


def _has_content(path: Path, file: StoredFile) -> bool:
    """A stamp may change without the content: a backup by hard links or a chmod sets ctime."""
    stamp = stamp_of(path)
    if stamp is None or stamp.size != file.stamp.size:
        return False
    if stamp == file.stamp:
        return True
    try:
        return sha256_file(str(path)) == file.sha256
    except StoreError:
        log.warning("%s cannot be read any more; its study is looked at again next time", path)
        return False


def _reasons(faults: Iterable[Fault | Rejection]) -> dict[str, str]:
    """Reasons by case_id; several of one case in a row."""
    reasons: dict[str, str] = {}
    for fault in faults:
        earlier = reasons.get(fault.case_id)
        reasons[fault.case_id] = fault.reason if earlier is None else f"{earlier}; {fault.reason}"
    return reasons


def _refs(case: Case, modality: str) -> tuple[VolumeRef, ...]:
    volume = case.volumes[modality]
    return (volume,) if case.mask is None else (volume, case.mask)


def _stamps(case: Case, modality: str) -> tuple[Stamp, ...] | None:
    """Stamps of all files of a case, None if one is gone."""
    stamps = [stamp_of(Path(ref.path)) for ref in _refs(case, modality)]
    present = tuple(stamp for stamp in stamps if stamp is not None)
    return present if len(present) == len(stamps) else None


def _let_settle(stamps: Iterable[tuple[Stamp, ...] | None], settle_s: float) -> None:
    """Wait once, until the youngest file is old enough.

    A clock that runs ahead on the file server costs one whole wait, no more.
    """
    files = [stamp for of_case in stamps for stamp in of_case or ()]
    youngest = max((max(stamp.mtime_ns, stamp.ctime_ns) / 1e9 for stamp in files), default=0.0)
    age_s = time.time() - youngest
    time.sleep(min(settle_s, max(0.0, settle_s - age_s)))


def _read_study(
    inbox: Path, case: Case, modality: str, before: tuple[Stamp, ...] | None, known: Mapping[str, StoredFile]
) -> Study | Fault:
    """A case with the hashes of its files, where their stamps are still those of `before`."""
    try:
        files = [_read_file(inbox, case.case_id, ref, known) for ref in _refs(case, modality)]
    except Exception as error:  # whatever is wrong with one study, the others are screened
        at_fault = isinstance(error, CaseError) and not isinstance(error, TruncatedError)
        return Fault(case.case_id, _one_line(error), may_pass=not at_fault)
    if tuple(file.stamp for file in files) != before or _stamps(case, modality) != before:
        return Fault(case.case_id, "its files are still changing", may_pass=True)
    return Study(case_id=case.case_id, volume=files[0], mask=files[1] if len(files) > 1 else None)


def _one_line(error: Exception) -> str:
    if isinstance(error, CaseError):
        text = error.reason
    elif isinstance(error, StoreError):
        text = str(error)
    else:
        text = repr(error)
    return " ".join(text.split())


def _read_file(inbox: Path, case_id: str, ref: VolumeRef, known: Mapping[str, StoredFile]) -> StoredFile:
    """The content of a file: as remembered where its stamp is the same, else read and hashed."""
    source = Path(ref.path)
    path = os.path.relpath(source, inbox)
    stamp = stamp_of(source)
    remembered = known.get(path)
    if remembered is not None and (remembered.stamp, remembered.channel) == (stamp, ref.channel):
        return remembered
    try:
        content = hash_whole(case_id, source)
    except OSError as error:
        raise StoreError(f"{source.name}: {UNREADABLE} ({error.strerror})") from error
    if stamp is None:
        raise StoreError(f"{source.name}: came while it was looked for")
    return StoredFile(path=path, channel=ref.channel, stamp=stamp, sha256=content)

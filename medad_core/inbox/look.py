"""Looking into an inbox: which studies are there, whole, and of which content.

One decision: a study is taken only when all its files were whole and have not changed for `inbox.settle_s`; anything else waits for the next look, with the reason.
Files whose stamp is the one remembered are not read again.
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
from medad_core.data.cases import Case, VolumeRef, discover
from medad_core.data.nifti import UNREADABLE, hash_whole
from medad_core.errors import CaseError, StoreError, TruncatedError
from medad_core.inbox.records import Stamp, StoredFile, Study
from medad_core.store import sha256_file

log = logging.getLogger(__name__)
READERS = 8  # hashing releases the GIL, and network folders answer slowly one file at a time


@dataclass(frozen=True)
class Fault:
    """Why a study was not taken."""

    case_id: str
    reason: str
    may_pass: bool


@dataclass(frozen=True)
class Look:
    """What an inbox holds. `waiting` may be whole next time; `unusable` needs somebody to do something. Both are looked at again every time."""

    studies: tuple[Study, ...]
    waiting: dict[str, str]
    unusable: dict[str, str]


def look(inbox: Path, settings: Settings, known: Mapping[str, StoredFile]) -> Look:
    """Every study below `inbox`, by case_id. `known` are files of an earlier look, by path.

    Raises UsageError where the inbox is missing. An empty one is no error: nothing has come yet.
    """
    found = discover(inbox, settings.data.modality, may_be_empty=True)
    if known and not found.cases and not found.rejected:
        log.warning("%s is empty now, %d files were there at the last look; is it mounted?", inbox, len(known))
    before = {case.case_id: _stamps(case, settings.data.modality) for case in found.cases}
    _let_settle((stamp for stamps in before.values() if stamps for stamp in stamps), settings.inbox.settle_s)
    with ThreadPoolExecutor(READERS) as pool:
        seen = list(
            pool.map(lambda case: _study(inbox, case, settings.data.modality, before[case.case_id], known), found.cases)
        )
    look = Look(tuple(each for each in seen if isinstance(each, Study)), {}, {})
    for fault in (*found.rejected, *(each for each in seen if isinstance(each, Fault))):
        reasons = look.waiting if isinstance(fault, Fault) and fault.may_pass else look.unusable
        reasons[fault.case_id] = (
            f"{reasons[fault.case_id]}; {fault.reason}" if fault.case_id in reasons else fault.reason
        )
    return look


def stamp_of(path: Path) -> Stamp | None:
    """None where there is no file."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return Stamp(size=facts.st_size, mtime_ns=facts.st_mtime_ns, ctime_ns=facts.st_ctime_ns, inode=facts.st_ino)


def unchanged(inbox: Path, study: Study) -> bool:
    """Whether the files of a study still have the content that was hashed."""
    return all(_unchanged(inbox / file.path, file) for file in study.files)


def _unchanged(path: Path, file: StoredFile) -> bool:
    """A stamp may change without the content: a backup by hard links or a chmod sets ctime."""
    stamp = stamp_of(path)
    if stamp is None or stamp == file.stamp or stamp.size != file.stamp.size:
        return stamp == file.stamp
    try:
        return sha256_file(str(path)) == file.sha256
    except StoreError:
        log.warning("%s cannot be read any more; its study is looked at again next time", path)
        return False


def _refs(case: Case, modality: str) -> tuple[VolumeRef, ...]:
    return (case.volumes[modality],) if case.mask is None else (case.volumes[modality], case.mask)


def _stamps(case: Case, modality: str) -> tuple[Stamp, ...] | None:
    stamps = tuple(stamp_of(Path(ref.path)) for ref in _refs(case, modality))
    return None if None in stamps else stamps


def _let_settle(stamps: Iterable[Stamp], settle_s: float) -> None:
    """Wait once, until the youngest file is old enough. A clock that runs ahead on the file server costs one whole wait, no more."""
    now = time.time()
    youngest = max((max(stamp.mtime_ns, stamp.ctime_ns) / 1e9 for stamp in stamps), default=0.0)
    time.sleep(min(settle_s, max(0.0, settle_s - (now - youngest))))


def _study(
    inbox: Path, case: Case, modality: str, before: tuple[Stamp, ...] | None, known: Mapping[str, StoredFile]
) -> Study | Fault:
    try:
        files = [_stored(inbox, case.case_id, ref, known) for ref in _refs(case, modality)]
    except Exception as error:  # whatever is wrong with one study, the others are screened
        at_fault = isinstance(error, CaseError) and not isinstance(error, TruncatedError)
        return Fault(case.case_id, _one_line(error), may_pass=not at_fault)
    if tuple(file.stamp for file in files) != before or _stamps(case, modality) != before:
        return Fault(case.case_id, "its files are still changing", may_pass=True)
    return Study(case_id=case.case_id, volume=files[0], mask=files[1] if len(files) > 1 else None)


def _one_line(error: Exception) -> str:
    text = (
        error.reason if isinstance(error, CaseError) else str(error) if isinstance(error, StoreError) else repr(error)
    )
    return " ".join(text.split())


def _stored(inbox: Path, case_id: str, ref: VolumeRef, known: Mapping[str, StoredFile]) -> StoredFile:
    path = os.path.relpath(ref.path, inbox)
    stamp, remembered = stamp_of(Path(ref.path)), known.get(path)
    if remembered is not None and (remembered.stamp, remembered.channel) == (stamp, ref.channel):
        return remembered
    try:
        content = hash_whole(case_id, Path(ref.path))
    except OSError as error:
        raise StoreError(f"{Path(ref.path).name}: {UNREADABLE} ({error.strerror})") from error
    if stamp is None:
        raise StoreError(f"{Path(ref.path).name}: came while it was looked for")
    return StoredFile(path=path, channel=ref.channel, stamp=stamp, sha256=content)

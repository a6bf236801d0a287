"""What was read of a file: the hash of the bytes, and the stamp of the file that they came from.

One decision: the bytes in memory are hashed, while they are read. So the hash is that of what became rows, whatever
happens to the file a moment later, and nothing is read twice. It is computed only inside of `reads_kept`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import BinaryIO

from medad_core.errors import CaseError, InputError
from medad_core.store.files import name_of
from medad_core.store.intact import TICK_NS
from medad_core.store.objects import ObjectFacts
from medad_core.store.records import Record
from medad_core.store.regular import Facts, facts_at, facts_in, open_regular

BLOCK = 1 << 22  # bytes held at a time
StampOf = tuple[int, int, int]  # mtime and ctime in ns, inode


class FileRead(Record, frozen=True):
    """What was read of the file `path`.

    `size` is its length in bytes, None if there was no such file. `sha256` (hex) is that of its first `read` bytes:
    of all that a reader looks at. Of a plain file with more bytes than its header declares, the rest does not count.
    `sha256` is None if the file could not be read. If `stamp` is still that of the file, the file is unchanged; it is
    None if the file was written to so recently that it may change again without another stamp.
    """

    path: str
    size: int | None
    stamp: StampOf | None
    read: int = 0
    sha256: str | None = None

    @property
    def content(self) -> tuple[int | None, int, str | None]:
        """What is compared to detect a change."""
        return self.size, self.read, self.sha256


_kept: ContextVar[list[FileRead] | None] = ContextVar("kept", default=None)


@contextmanager
def reads_kept() -> Iterator[list[FileRead]]:
    """The list of what is read of every volume and mask inside the block, also of those that cannot be used."""
    kept: list[FileRead] = []
    token = _kept.set(kept)
    try:
        yield kept
    finally:
        _kept.reset(token)


class Reading:
    """A block in which the opened file of a case is read. `keep` gets the bytes that count.

    Raises InputError if the file is written to in the meantime: then the bytes may mix two versions of the file.
    """

    def __init__(self, case_id: str, path: str, stream: BinaryIO) -> None:
        self.case_id = case_id
        self.path = path
        self._stream = stream
        self._raw = b""

    def __enter__(self) -> Reading:
        self._begun_ns = time.time_ns()
        self._before = facts_in(self._stream)
        return self

    def keep(self, raw: bytes) -> bytes:
        """`raw`, the bytes from the file's beginning that its content is found in."""
        self._raw = raw
        return raw

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and not isinstance(error, CaseError):
            return
        after = facts_in(self._stream)
        if _facts(after) != _facts(self._before):
            raise InputError(f"{self.case_id}: {name_of(self.path)} is still changing; run the same command again")
        kept = _kept.get()
        if kept is not None:
            digest = hashlib.sha256(self._raw).hexdigest()
            kept.append(_file_read(self.path, after, self._begun_ns, len(self._raw), digest))


def keep_beginning(path: str, facts: ObjectFacts, raw: bytes, before: FileRead | None) -> FileRead:
    """Inside of `reads_kept`: note the first bytes of an object, in place of what was noted of them `before`."""
    noted = _file_read(path, facts, 0, len(raw), hashlib.sha256(raw).hexdigest())
    kept = _kept.get()
    if kept is not None and before in kept:
        kept[kept.index(before)] = noted
    elif kept is not None:
        kept.append(noted)
    return noted


def keep_unreadable(path: str) -> None:
    """Inside of `reads_kept`: note a file that is not there, or does not open."""
    kept = _kept.get()
    if kept is None:
        return
    begun_ns = time.time_ns()
    try:
        kept.append(_file_read(path, facts_at(path), begun_ns, 0, None))
    except OSError:
        kept.append(FileRead(path=path, size=None, stamp=None))


def stamp_of(facts: Facts) -> StampOf:
    """The stamp of a file. A copying program can set the mtime, but not the ctime. Of an object its tag counts."""
    return facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino


def read_again(path: str, count: int) -> FileRead:
    """Hash the first `count` bytes of a file. Raises OSError, and InputError if it is written to in the meantime."""
    begun_ns = time.time_ns()
    digest = hashlib.sha256()
    have = 0
    with open_regular(path) as stream:
        before = facts_in(stream)
        while have < count and (block := stream.read(min(BLOCK, count - have))):
            digest.update(block)
            have += len(block)
        after = facts_in(stream)
    if _facts(before) != _facts(after):
        raise InputError(f"{path} is still changing; run the same command again")
    return _file_read(path, after, begun_ns, have, digest.hexdigest())


def _facts(facts: Facts) -> tuple[int, StampOf]:
    return facts.st_size, stamp_of(facts)


def _file_read(path: str, facts: Facts, begun_ns: int, count: int, sha256: str | None) -> FileRead:
    is_settled = isinstance(facts, ObjectFacts) or max(facts.st_mtime_ns, facts.st_ctime_ns) < begun_ns - TICK_NS
    stamp = stamp_of(facts) if is_settled else None
    return FileRead(path=path, size=facts.st_size, stamp=stamp, read=count, sha256=sha256)

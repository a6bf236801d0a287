"""A lock that allows one screening of a cohort at a time.

One decision: it is a kernel lock (`flock`) on an open file. The kernel releases it when the process ends, so there are
no stale locks. The content of the file is for people only. A link in its place is refused. The package filelock is not
suitable: it opens the file for writing and empties it, which erases the holder's name and excludes readers without
write permission.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from medad_core.errors import MedadError
from medad_core.store.files import explained
from medad_core.store.regular import open_lock, open_regular, read_utf8

POLL_S = 0.2
GRACE_S = 1.0  # `holder` shares the lock for a moment, which is no reason to refuse


class LockedError(MedadError):
    """Another process screens the same cohort."""


@contextmanager
def locked(cohort: Path, wait: bool = False) -> Iterator[None]:
    """Hold the cohort's folder while the block runs. With `wait`, wait for another process that holds it.

    Raises LockedError naming the holder otherwise, StoreError if the lock cannot be written, or is no file of its own.
    """
    path = cohort / ".lock"
    with explained("lock", str(cohort)):
        cohort.mkdir(parents=True, exist_ok=True)
        descriptor = open_lock(path)
    try:
        with explained("lock", str(cohort)):
            _acquire(descriptor, cohort, wait)
            note = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(note).encode(), 0)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child that still runs has the same lock
        os.close(descriptor)


def check_free(cohort: Path) -> None:
    """Raise LockedError if another process holds the cohort now."""
    name = holder(cohort)
    if name is not None:
        raise LockedError(_refusal(cohort, name))


def holder(cohort: Path) -> str | None:
    """The process that holds the cohort ("process 1 on host since …"), None if none does. Only reads the lock file."""
    path = cohort / ".lock"
    with explained("read", str(path)):
        try:
            with open_regular(path) as stream:
                return None if _taken(stream.fileno(), fcntl.LOCK_SH) else _holder(path)
        except (FileNotFoundError, NotADirectoryError):
            return None


def _acquire(descriptor: int, cohort: Path, wait: bool) -> None:
    patience = time.monotonic() + GRACE_S
    while not _taken(descriptor, fcntl.LOCK_EX):
        if not wait and time.monotonic() > patience:
            raise LockedError(_refusal(cohort, _holder(cohort / ".lock")))
        time.sleep(POLL_S)


def _refusal(cohort: Path, name: str) -> str:
    return f"{cohort} is being screened by {name}; wait for it, or give --wait"


def _taken(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(path: Path) -> str:
    try:
        note = json.loads(read_utf8(path))
        return f"process {note['pid']} on {note['host']} since {note['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"

"""A lock that allows one command at a time to write to a run, a cohort or a folder of weights.

One decision: it is a kernel lock (`flock`) on an open file. The kernel releases it when the process ends, so there are
no stale locks. The content of the file is for people only. The package filelock is not suitable: it opens the file for
writing and empties it, which erases the holder's name and excludes readers without write permission. A lock file that
is a link is refused: it would be written to wherever it leads. In a bucket there is no kernel, but a lease (`lease`).
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from medad_core.media import visible
from medad_core.store.files import explained, local_name, local_path
from medad_core.store.lease import LockedError, lease_holder, leased
from medad_core.store.objects import is_object
from medad_core.store.regular import open_lock, open_regular

NAME = ".lock"
POLL_S = 0.2
GRACE_S = 1.0  # `holder` shares the lock for a moment, which is no reason to refuse
WAIT = "wait for it, or give --wait"
_LONGEST_NOTE = 4096  # bytes


@contextmanager
def locked(uri: str | Path, wait: bool = False, way_out: str = WAIT) -> Iterator[None]:
    """Hold a folder while the block runs. With `wait`, wait for another process that holds it.

    Raises LockedError naming the holder, and `way_out`, otherwise; StoreError if the lock cannot be written.
    """
    is_leased = is_object(str(uri))
    folder = Path(local_name(str(uri)) or "")
    with leased(str(uri), wait, way_out) if is_leased else _flocked(folder, wait, way_out):
        yield


@contextmanager
def _flocked(folder: Path, wait: bool, way_out: str) -> Iterator[None]:
    with explained("lock", str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = open_lock(folder / NAME)
    try:
        with explained("lock", str(folder)):
            _acquire(descriptor, folder, wait, way_out)
            note = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(note).encode(), 0)
        try:
            yield
        finally:
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child that still runs has the same lock
        os.close(descriptor)


@contextmanager
def held(uri: str) -> Iterator[None]:
    """Hold the existing folder `uri`, or a place in a bucket, while the block runs.

    Raises LockedError naming the holder, StoreError if the lock cannot be written.
    """
    folder = local_path(uri)
    if folder is not None and not folder.is_dir():
        yield
        return
    with locked(uri, way_out="wait until it ends"):
        yield


def check_unheld(uri: str) -> None:
    """Raise LockedError if another process holds the folder `uri` now; nothing is written."""
    check_free(uri, "wait until it ends")


def check_free(uri: str | Path, way_out: str = WAIT) -> None:
    """Raise LockedError if another process holds the folder now."""
    name = holder(uri)
    if name is not None:
        raise LockedError(_refusal(uri, name, way_out))


def holder(uri: str | Path) -> str | None:
    """The process that holds the folder ("process 1 on host since …"), None if none does. Only reads the lock file."""
    if is_object(str(uri)):
        return lease_holder(str(uri))
    folder = Path(local_name(str(uri)) or "")
    with explained("read", str(folder / NAME)):
        try:
            stream = open_regular(folder / NAME)
        except (FileNotFoundError, NotADirectoryError):
            return None
        with stream:
            return None if _taken(stream.fileno(), fcntl.LOCK_SH) else _holder(stream.fileno())


def _acquire(descriptor: int, folder: Path, wait: bool, way_out: str) -> None:
    patience = time.monotonic() + GRACE_S
    while not _taken(descriptor, fcntl.LOCK_EX):
        if not wait and time.monotonic() > patience:
            raise LockedError(_refusal(folder, _holder(descriptor), way_out))
        time.sleep(POLL_S)


def _refusal(folder: str | Path, name: str, way_out: str) -> str:
    return f"{folder} is in use by {name}; {way_out}"


def _taken(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> str:
    try:
        note = json.loads(os.pread(descriptor, _LONGEST_NOTE, 0))
        return visible(f"process {note['pid']} on {note['host']} since {note['since']}")
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"

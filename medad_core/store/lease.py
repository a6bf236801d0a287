"""A lock in a bucket, where no kernel keeps one: an object with a deadline, which its holder renews.

One decision: the store decides and the store's clock counts. The lease is made, renewed and taken over by conditional
writes, so of two commands one is refused. Whether a lease has run out is told by the store's own times of two objects,
so a clock of this machine that is wrong does no harm. The lease of a process of this machine that is gone is taken
over at once. A holder that cannot renew its lease in time stops before its deadline. A store that ignores conditions is
noticed: there the second of two writers waits and reads what stands. A write whose answer was lost is looked for before
it counts as one of somebody else.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from medad_core.errors import MedadError
from medad_core.media import visible
from medad_core.store import objects
from medad_core.store.files import explained, join
from medad_core.store.objects import ChangedError

log = logging.getLogger(__name__)
NAME = ".lease"
TERM_S = 60.0  # a lease that was not renewed for so long has run out
RENEW_S = 15.0
POLL_S = 2.0
SETTLE_S = 2.0  # how long a store without conditions is given to show another writer
_LONGEST_NOTE = 4096  # bytes
_held: dict[str, _Lease] = {}


class LockedError(MedadError):
    """Another process writes to the same folder."""


@dataclass
class _Lease:
    """A lease that this process holds."""

    uri: str
    note: bytes
    e_tag: str
    is_conditional: bool
    renewed: float = field(default_factory=time.monotonic)
    lost: str | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Note that it is lost where it was not renewed for too long, also while a renewal waits for an answer."""
        if time.monotonic() - self.renewed > TERM_S - RENEW_S:
            silence = f"{self.uri}: the store did not answer for {TERM_S - RENEW_S:.0f} s, so its lease runs out"
            self.lost = self.lost or silence

    def keep(self) -> None:
        """Renew it until it is given back, or lost."""
        with objects.hasty():  # a thread has a context of its own
            self._keep()

    def _keep(self) -> None:
        while not self.ended.wait(RENEW_S) and self.lost is None:
            try:
                self.e_tag = self._renewed()
                self.renewed = time.monotonic()
            except (ChangedError, FileNotFoundError):
                who = None
                with suppress(MedadError):  # a store that fails now changes nothing of the loss
                    who = lease_holder(self.uri)
                self.lost = f"{self.uri} was taken over by {who or 'another process'}"
            except OSError as error:
                log.warning("%s: the lease could not be renewed (%s)", self.uri, error.strerror)
            self.check()

    def _renewed(self) -> str:
        place = join(self.uri, NAME)
        if self.is_conditional:
            try:
                return objects.put_over(place, self.note, self.e_tag)
            except ChangedError:
                own = _own_tag(self.uri, self.note)  # an earlier try may have come through
                if own is None:
                    raise
                return own
        if objects.get(place) != self.note:
            raise ChangedError("it is the lease of another process")
        objects.put(place, self.note)
        return ""


def check_leases() -> None:
    """Raise LockedError where this process has lost a lease that it holds: it must not write any more."""
    for lease in list(_held.values()):
        lease.check()
        if lease.lost is not None:
            raise LockedError(f"{lease.lost}; the same command goes on where it stopped")


@contextmanager
def leased(uri: str, wait: bool, way_out: str) -> Iterator[None]:
    """Hold the place `uri` of a bucket while the block runs. With `wait`, wait for another process that holds it.

    Raises LockedError naming the holder, and `way_out`; also at the end, where the lease was lost meanwhile. Raises
    StoreError where the store fails.
    """
    lease = _acquire(uri, wait, way_out)
    _held[uri] = lease
    renewing = threading.Thread(target=lease.keep, name="medad-lease", daemon=True)
    renewing.start()
    try:
        yield
        check_leases()
    finally:
        del _held[uri]
        lease.ended.set()
        renewing.join()
        if lease.lost is None:
            with suppress(OSError), objects.hasty():
                if _own_tag(uri, lease.note) is not None:
                    objects.delete(join(uri, NAME))


def lease_holder(uri: str) -> str | None:
    """Who holds a place of a bucket ("process 1 on host since …"), None if nobody does. Raises StoreError."""
    with explained("read", join(uri, NAME)), objects.hasty():
        found = _find(uri)
    return None if found is None or _has_run_out(found) else _named(found[0])


def _acquire(uri: str, wait: bool, way_out: str) -> _Lease:
    note = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "token": uuid.uuid4().hex,
        "machine": _machine(),
    }
    text = json.dumps(note).encode()
    while True:
        with explained("lock", uri), objects.hasty():
            lease = _made(uri, text) or _taken_over(uri, text)
            if lease is not None:
                return lease
            found = _find(uri)
        if found is not None and not wait:
            raise LockedError(f"{uri} is in use by {_named(found[0])}; {way_out}")
        time.sleep(POLL_S if found is not None else 0)


def _made(uri: str, note: bytes) -> _Lease | None:
    """A new lease, None where there is one."""
    place = join(uri, NAME)
    try:
        e_tag = objects.put_new(place, note)
    except FileExistsError:
        own = _own_tag(uri, note)
        return None if own is None else _Lease(uri, note, own, is_conditional=True)
    try:
        objects.put_new(place, note)
    except FileExistsError:
        return _Lease(uri, note, e_tag, is_conditional=True)
    time.sleep(SETTLE_S)  # the store ignored the condition
    return _Lease(uri, note, "", is_conditional=False) if objects.get(place) == note else None


def _taken_over(uri: str, note: bytes) -> _Lease | None:
    """The lease of a process that is gone, taken over; None where its holder lives, or another one was faster."""
    found = _find(uri)
    if found is None or not _has_run_out(found):
        return None
    before, e_tag, _ = found
    try:
        new_tag = objects.put_over(join(uri, NAME), note, e_tag)
    except (ChangedError, FileNotFoundError):
        own = _own_tag(uri, note)
        if own is None:
            return None
        new_tag = own
    log.warning("%s: the lease of %s is taken over, which ended without giving it back", uri, _named(before))
    return _Lease(uri, note, new_tag, is_conditional=True)


def _own_tag(uri: str, note: bytes) -> str | None:
    """The tag of the lease where it says `note`, None where it is another one's, or there is none. Raises OSError."""
    place = join(uri, NAME)
    try:
        tag = objects.facts_of(place).e_tag
        return tag if objects.get(place, e_tag=tag) == note else None
    except (FileNotFoundError, ChangedError):
        return None


def _find(uri: str) -> tuple[bytes, str, float] | None:
    """What a lease says, its tag, and how long ago it was renewed, by the store's clock; None where there is none."""
    place = join(uri, NAME)
    probe = f"{place}-{uuid.uuid4().hex}"
    try:
        facts = objects.facts_of(place)
        note = objects.get(place, e_tag=facts.e_tag)[:_LONGEST_NOTE]
    except (FileNotFoundError, ChangedError):
        return None
    objects.put(probe, b"")  # what time is it there?
    try:
        now_ns = objects.facts_of(probe).st_mtime_ns
    finally:
        objects.delete(probe)
    return note, facts.e_tag, (now_ns - facts.st_mtime_ns) / 1e9


def _has_run_out(found: tuple[bytes, str, float]) -> bool:
    """Whether a lease was not renewed for too long, or was held by a process of this machine that is gone."""
    note, _, age_s = found
    try:
        said = json.loads(note)
        is_here = said["machine"] == _machine() != ""
        os.kill(int(said["pid"]) if is_here else os.getpid(), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return age_s > TERM_S


def _machine() -> str:
    """What is the same only for processes that see each other's numbers: the boot, and the container in it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _named(note: bytes) -> str:
    try:
        said = json.loads(note)
        return visible(f"process {said['pid']} on {said['host']} since {said['since']}")
    except (ValueError, KeyError, TypeError):
        return "another process"

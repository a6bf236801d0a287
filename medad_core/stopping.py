"""Stopping in the middle of work, because the process was asked to.

One decision: a flag of the process, which long loops check between cases, batches and tokens (`check`). What they leave
behind is what a killed process leaves, less its temporary files. Whoever cannot wait for them may end the process.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.process import BaseProcess

from medad_core.errors import Stopped
from medad_core.store.files import sweep_own
from medad_core.store.lease import check_leases

_stop_requested = threading.Event()
_watching_parent = threading.Lock()


def request_stop() -> None:
    """Let every loop that checks end at its next step."""
    _stop_requested.set()


def withdraw_request() -> None:
    """Let work begin again, in a process that was asked to stop before (a notebook)."""
    _stop_requested.clear()


def check() -> None:
    """Raise Stopped where this process was asked to stop, and LockedError where it lost a lease."""
    if _stop_requested.is_set():
        raise Stopped("stopped; the same command goes on where it stopped")
    check_leases()


def end_with_parent() -> None:
    """In a process that multiprocessing started: end when the parent does, also by SIGKILL. Nothing happens elsewhere.

    A worker of a pool would wait for its next call for ever, its models in memory, or write a part that a new command
    is writing too.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and _watching_parent.acquire(blocking=False):
        threading.Thread(target=_end_after, args=(parent,), name="medad-parent", daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    sweep_own()
    os._exit(1)

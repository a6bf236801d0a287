"""Stopping in the middle of work, because the process was asked to.

One decision: a flag of the process, which loops of minutes look at between cases, batches and tokens (`check`). What they leave behind
is what a killed process leaves, less its temporary files; so whoever cannot wait for them may as well end the process.
"""

from __future__ import annotations

import multiprocessing
import os
import threading

from medad_core.errors import Stopped
from medad_core.store.files import sweep_own

_asked = threading.Event()
_bound = threading.Lock()


def ask() -> None:
    """Let every loop that checks end at its next step."""
    _asked.set()


def withdraw() -> None:
    """Let work begin again, in a process that was asked to stop before (a notebook)."""
    _asked.clear()


def check() -> None:
    """Raise Stopped where this process was asked to stop."""
    if _asked.is_set():
        raise Stopped("stopped; the same command goes on where it stopped")


def end_with_parent() -> None:
    """In a process that multiprocessing started: end when the parent does, also by SIGKILL. Nothing happens elsewhere.

    A worker of a pool would wait for its next call for ever, its models in memory, or write a part that a new command is writing too.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and _bound.acquire(blocking=False):
        threading.Thread(target=_end_after, args=(parent,), name="medad-parent", daemon=True).start()


def _end_after(parent) -> None:
    parent.join()
    sweep_own()
    os._exit(1)

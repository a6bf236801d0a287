"""SIGTERM and Ctrl-C: the process ends within seconds, whatever it is doing.

One decision: the files on disk are consistent at every moment, so the process need not wait for anything. Work is asked
to stop within GRACE_S; work that has not stopped by then is abandoned. After LAST_S the process ends, whatever it is
doing.

While a flow runs, Prefect replaces our signal handler by its own. This raises TerminationSignal in the main thread, the
engine marks the run as crashed on its server, and then Prefect sends the signal again to our handler.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

GRACE_S = 3.0
SOON_S = 0.5
LAST_S = 8.0
INTERRUPTED, TERMINATED = 130, 143  # 128 + the signal's number, as shells have it
WORDS = {INTERRUPTED: "interrupted", TERMINATED: "terminated"}
_ending: list[threading.Timer] = []
_left_behind: list[threading.Thread] = []
_announced: list[int] = []


class Terminated(SystemExit):
    """SIGTERM."""


@contextmanager
def signals_as_errors() -> Iterator[None]:
    """While the block runs, SIGTERM raises Terminated and Ctrl-C KeyboardInterrupt in the main thread.

    The process then ends in LAST_S.
    """

    def terminate(*_: object) -> None:
        end_in(code=TERMINATED)
        raise Terminated(TERMINATED)

    def interrupt(*_: object) -> None:
        end_in(code=INTERRUPTED)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _announced.clear()
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, terminate),
        signal.SIGINT: signal.signal(signal.SIGINT, interrupt),
    }
    try:
        yield
    except Terminated:
        before[signal.SIGTERM] = signal.SIG_IGN  # a second SIGTERM would interrupt the clean-up
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_in(seconds: float = LAST_S, *, code: int) -> None:
    """End the process with `code` after `seconds`, if it has not ended by then."""
    timer = threading.Timer(seconds, end, (code,))
    timer.daemon = True
    timer.start()
    _ending.append(timer)


def end_soon(code: int) -> None:
    """If the process is already ending, end it after SOON_S instead of LAST_S."""
    if _ending:
        end_in(SOON_S, code=code)


def ignore_sigterm() -> None:
    """Ignore further SIGTERMs until Prefect has removed its own handler.

    An ending worker causes two: its own, and that of its process group. The second would interrupt the clean-up.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def announce(code: int) -> None:
    """Write one line to stderr, once per code of a signal."""
    if code in WORDS and code not in _announced:
        _announced.append(code)
        line = f"medad: {WORDS[code]}; the same command goes on where it stopped\n"
        sys.stderr.write(line)
        sys.stderr.flush()


def end(code: int) -> None:
    """End the process now: remove its temporary files, but do not wait for threads."""
    from medad_core.store.files import sweep_own

    _end_children()
    sweep_own()
    announce(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end_if_left_behind(code: int) -> None:
    """End the process now if an abandoned thread still runs, because Python would wait for it."""
    if any(thread.is_alive() for thread in _left_behind):
        end(code)


def leave_behind(close: Callable[[], None]) -> None:
    """Ask all work of this process to stop, end its child processes, and wait GRACE_S at most for `close()`."""
    from medad_core import stopping

    stopping.request_stop()
    _end_children()
    closing = threading.Thread(target=close, name="medad-closing", daemon=True)
    closing.start()
    closing.join(GRACE_S)
    _left_behind.append(closing)


def _end_children() -> None:
    """Send SIGTERM, then SIGKILL, to the child processes of multiprocessing."""
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    for child in children:
        child.join(GRACE_S / 3)
        if child.is_alive():
            child.kill()

"""SIGTERM and Ctrl-C: the process ends within seconds, whatever it is doing.

One decision: state on disk is sound at every moment, so nothing has to be waited for. Work is asked to stop and given
GRACE_S; what has not stopped by then is left where it is. After LAST_S the process ends in the middle of whatever it
still does.

Prefect puts a handler of its own in place of ours while a flow runs: it raises TerminationSignal in the main thread,
the engine marks the run as crashed on its server, and then the signal is sent again, to us.
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
        before[signal.SIGTERM] = signal.SIG_IGN  # a second one would only cut the end short
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_in(seconds: float = LAST_S, *, code: int) -> None:
    """End the process with `code` in so many seconds, should it still be there."""
    timer = threading.Timer(seconds, end, (code,))
    timer.daemon = True
    timer.start()
    _ending.append(timer)


def end_soon(code: int) -> None:
    """End a process that is ending already in SOON_S: it has nothing more to wait for."""
    if _ending:
        end_in(SOON_S, code=code)


def ignore_sigterm() -> None:
    """Ignore further SIGTERMs until Prefect has taken its own handler away.

    A worker that ends and its group send two, and the second would cut the clean-up short.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def announce(code: int) -> None:
    """One line on stderr, once."""
    if code not in _announced:
        _announced.append(code)
        line = f"medad: {WORDS[code]}; the same command goes on where it stopped\n"
        sys.stderr.write(line)
        sys.stderr.flush()


def end(code: int) -> None:
    """End the process now: no thread is waited for, no temporary file is left."""
    from medad_core.store.files import sweep_own

    _end_children()
    sweep_own()
    announce(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end_if_left_behind(code: int) -> None:
    """End the process now, where a thread was left in the middle of its work: Python would wait for it."""
    if any(thread.is_alive() for thread in _left_behind):
        end(code)


def leave_behind(close: Callable[[], None]) -> None:
    """Ask all work of this process to stop, end its child processes, and call `close`; wait for it GRACE_S at most."""
    from medad_core import stopping

    stopping.request_stop()
    _end_children()
    closing = threading.Thread(target=close, name="medad-closing", daemon=True)
    closing.start()
    closing.join(GRACE_S)
    _left_behind.append(closing)


def _end_children() -> None:
    """SIGTERM, then SIGKILL, to the processes that multiprocessing started here."""
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    for child in children:
        child.join(GRACE_S / 3)
        if child.is_alive():
            child.kill()

"""Watches the head of the Ray cluster that this process belongs to.

One decision: a head is lost when nobody accepts a connection at its address for LOST_S. A head that is started anew may
take so long; Ray itself would end the process after a minute, in the middle of whatever it does and with lines of its
own. Workers look for themselves, because nobody can end them without a head: one that went on might write a part that
a new command is writing too.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

LOST_S = 40.0
WORKER_LOST_S = 45.0  # later than the command, which would take it for the death of a worker
POLL_S = 2.0
CONNECT_S = 3.0


class HeadWatch:
    """Asks a head at HOST:PORT until it is lost, which calls `then` with its address, or until the watch is closed."""

    def __init__(self, address: str, then: Callable[[str], None], patience_s: float = LOST_S) -> None:
        self.address = address
        self.is_lost = False
        self._patience_s = patience_s
        self._then = then
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="medad-ray-head", daemon=True).start()

    def close(self) -> None:
        """Stop asking."""
        self._closed.set()

    def _watch(self) -> None:
        seen = time.monotonic()
        while not self._closed.wait(POLL_S):
            if answers(self.address):
                seen = time.monotonic()
            elif time.monotonic() - seen > self._patience_s:
                self.is_lost = True
                self._then(self.address)
                return


def answers(address: str) -> bool:
    """Whether somebody accepts a connection at HOST:PORT within CONNECT_S."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError:
        return False
    return True

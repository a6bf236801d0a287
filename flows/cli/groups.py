"""A command as a process group: whatever it starts ends with it, and it ends with us.

One decision: signals go to the group. A process that is killed has no time to send any; then a shell beside each group
sees the end of a pipe that only the killed process held, and sends them.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

GRACE_S = 10.0  # a flow run that gets SIGTERM ends in 8 s
POLL_S = 0.1
LINES = 15  # that are kept of a command's log, for the case that it dies
RECORD = re.compile(r"\d\d:\d\d:\d\d\.\d+ \| ")  # how a record of Prefect's logs begins; what follows it are tracebacks
GUARD = f'read -r _; kill -TERM "-$0"; sleep {GRACE_S:.0f}; kill -KILL "-$0"'


class Group:
    """A command as the head of a process group.

    Records of its log go to `print_line`, with `once` nothing twice; the last lines are kept as they are.
    """

    def __init__(
        self,
        name: str,
        words: Sequence[str],
        environment: Mapping[str, str],
        print_line: Callable[[str], None],
        once: bool = False,
    ) -> None:
        self.name = name
        self.print_line = print_line
        self.once = once
        self.last: deque[str] = deque(maxlen=LINES)
        self.printed: set[str] = set()
        self.process = subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        try:
            self.guard = _guard(self.process.pid)
        except BaseException:  # nobody else knows of the command yet
            self._signal(signal.SIGKILL)
            self.process.wait()
            raise
        self.reader = threading.Thread(target=self._read, name=f"medad-{name}", daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for raw in self.process.stdout or ():
            line = raw.rstrip()
            if line:
                self.last.append(line)
            if RECORD.match(line) and self._is_new(line):
                # A terminal that is gone, a full disk: an error would end this thread, and nobody would empty the pipe.
                with suppress(Exception):
                    self.print_line(f"{self.name} | {line}")

    def _is_new(self, line: str) -> bool:
        """Whether a line is new, numbers aside.

        Prefect's server on SQLite reports every write that it has to try again, with other numbers each time.
        """
        if not self.once:
            return True
        without_numbers = re.sub(r"[0-9a-f.:-]*\d[0-9a-f.:-]*|\s", "", line)
        is_new = without_numbers not in self.printed
        self.printed.add(without_numbers)
        return is_new

    def is_alive(self) -> bool:
        """Whether any process of the group lives."""
        self.has_ended()  # what has ended counts until its parent has looked
        return self._signal(0)

    def has_ended(self) -> bool:
        """Whether the command itself has ended."""
        return self.process.poll() is not None

    def end(self, grace_s: float, at_once: Callable[[], bool]) -> None:
        """SIGTERM to the group, SIGKILL to what is left of it after `grace_s`, or at once when `at_once` says so."""
        until = time.monotonic() + grace_s
        self._signal(signal.SIGTERM)
        while self.is_alive() and time.monotonic() < until and not at_once():
            time.sleep(POLL_S)
        self._signal(signal.SIGKILL)
        self.process.wait()
        self.guard.kill()
        self.guard.wait()
        self.reader.join(1)

    def _signal(self, number: int) -> bool:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return False
        return True


def _guard(group: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["sh", "-c", GUARD, str(group)], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )

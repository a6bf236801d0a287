"""Processes that have imported torch and Transformers already, so that a life costs seconds: `start_prepared`.

One decision: a parent that has imported them, and no thread, forks a process for every script that is started. Such a
process is all that a new one would be: a session, an environment, arguments and an output of its own, and a
`__main__` of its own, which the workers that it spawns import again. Prefect is not imported before: it reads its
settings when it is. Threads of BLAS and of the allocator, which know of forks, are no matter.

Run as a script it is the parent: it reads requests from the socket whose number is its argument.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
START_S = 120.0
_LONGEST = 1 << 17  # bytes of a message


class Life:
    """A started process, with what tests need of subprocess.Popen. `output` is all that it has printed so far."""

    def __init__(self, parent: _Parent, pid: int, file: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._parent = parent
        self._file = file

    @property
    def output(self) -> str:
        """What it printed, errors included."""
        return self._file.read_text(encoding="utf-8", errors="replace")

    def poll(self, timeout: float = 0.0) -> int | None:
        """Its exit code, None while it lives; waits so many seconds at most."""
        if self.returncode is None:
            self.returncode = self._parent.code_of(self.pid, timeout)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, when it has ended. Raises subprocess.TimeoutExpired."""
        code = self.poll(1e9 if timeout is None else timeout)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, from any thread, unless its end was noticed."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)


class _Parent:
    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="medad-prepared-")
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._codes: dict[int, int] = {}
        self._started = 0
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(
                command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        atexit.register(self._close)
        self._channel.settimeout(START_S)
        assert self._channel.recv(_LONGEST) == b"ready"

    def start(self, script: Path, words: list[str], environment: dict[str, str]) -> Life:
        """Start `script` with these words."""
        self._started += 1
        file = Path(self._folder.name) / str(self._started)
        request = {"script": str(script), "words": words, "environment": environment}
        with file.open("wb") as output:
            socket.send_fds(self._channel, [json.dumps(request).encode()], [output.fileno()])
        while (pid := self._receive(START_S)) is None:
            pass
        return Life(self, pid, file)

    def code_of(self, pid: int, timeout: float) -> int | None:
        """The exit code of a process that was started; None if it lives on after so many seconds."""
        deadline = time.monotonic() + timeout
        while pid not in self._codes:
            left = deadline - time.monotonic()
            try:
                self._receive(max(left, 0.0))
            except (TimeoutError, BlockingIOError):
                return self._codes.get(pid)
        return self._codes[pid]

    def _receive(self, timeout: float) -> int | None:
        """Take one message: that of an end is kept, that of a start is returned."""
        self._channel.settimeout(min(timeout, 1e6))
        message = json.loads(self._channel.recv(_LONGEST))
        if "code" not in message:
            return message["pid"]
        self._codes[message["pid"]] = message["code"]
        return None

    def _close(self) -> None:
        self._channel.close()
        self._process.wait()
        self._folder.cleanup()


@cache
def _parent() -> _Parent:
    return _Parent()


def start_prepared(script: Path, words: Sequence[object], environment: Mapping[str, str]) -> Life:
    """`python script words…` in a new session, with this environment, in the folder of pytest."""
    return _parent().start(script, [str(word) for word in words], dict(environment))


def _import() -> None:
    """Import what a screening needs. Nothing of it may start a thread of Python: those do not survive a fork."""
    for name in (
        "medad_core.llm.transformers_engine",
        "medad_core.stages.answers",
        "medad_core.stages.evaluate",
        "medad_core.stages.maps",
        "transformers.models.auto.modeling_auto",
        "transformers.models.dinov2.modeling_dinov2",
        "transformers.models.llama.modeling_llama",
        "transformers.tokenization_utils_tokenizers",
    ):
        importlib.import_module(name)
    assert threading.active_count() == 1


def _serve(channel: socket.socket) -> dict | None:
    """Fork a process for every request, and tell its number and, when it ends, its exit code.

    Returns the request in the process that was forked, None in the parent when nobody asks any more.
    """
    channel.send(b"ready")
    waiting = selectors.DefaultSelector()
    waiting.register(channel, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.fileobj is not channel:
                pid = key.data
                waiting.unregister(key.fileobj)
                os.close(key.fd)
                _tell(channel, pid=pid, code=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                continue
            message, files, *_ = socket.recv_fds(channel, _LONGEST, 1)
            if not message:
                return None
            pid = os.fork()
            if pid == 0:
                os.dup2(files[0], 1)
                os.dup2(files[0], 2)
                os.close(files[0])
                waiting.close()
                channel.close()
                return json.loads(message)
            os.close(files[0])
            waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
            _tell(channel, pid=pid)


def _tell(channel: socket.socket, **facts: int) -> None:
    channel.send(json.dumps(facts).encode())


def _become(request: dict) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [request["script"], *request["words"]]
    sys.path[0] = str(Path(request["script"]).parent)
    runpy.run_path(request["script"], run_name="__main__")


if __name__ == "__main__":
    _import()
    if (asked := _serve(socket.socket(fileno=int(sys.argv[1])))) is not None:
        _become(asked)

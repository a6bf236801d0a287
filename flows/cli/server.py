"""Prefect's temporary server, which a command without PREFECT_API_URL starts for itself, ends with the command.

One decision: Prefect stops it when Python exits, and a killed process never does that. A shell beside the server waits
for the end of a pipe that only the command holds. So the server ends with the command, however that ends. A server that
cannot be started is ended at once, and so is the command: Prefect would start another one and forget the first.

Nobody else can use it: it has an authentication string of its own, in its environment. And nobody can be in its place:
the command itself binds its port, and hands the socket over.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flows.access import SERVER, new_auth_string, set_client_auth_string, use_auth_string
from medad_core.errors import MedadError, first_line
from medad_core.surroundings.processes import python_command

if TYPE_CHECKING:
    from prefect.server.api.server import SubprocessASGIServer

POLL_S = 0.01
ENVIRONMENT = {  # of the server
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "",
}


def start_temporary_server() -> None:
    """Start the server that the first flow would start, with its guard, and wait until it answers.

    Nothing is started where a real server is configured, or where Prefect may start none. Raises MedadError where it
    does not answer; then nothing of it is left.
    """
    with temporary_server() as started:
        started()


@contextmanager
def temporary_server(soon: bool = True) -> Iterator[Callable[[], None]]:
    """Yields what starts the server and waits until it answers, as `start_temporary_server` does.

    With `soon`, the server starts beside what the block does before it calls that. If the block never does, or fails
    before the server answers, nothing of it is left.
    """
    start = _Start() if _is_needed() else None
    if start is not None and soon:
        start.begin()
    try:
        yield (lambda: None) if start is None else start.wait
    finally:
        if start is not None and not start.answers:
            start.stop()


def _is_needed() -> bool:
    from flows.orchestrator import has_prefect_settings, server_url

    if not has_prefect_settings():
        return True
    from prefect.settings import PREFECT_SERVER_ALLOW_EPHEMERAL_MODE

    url = server_url()
    if url:
        use_auth_string(url)
    return not url and PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value()


class _Start:
    """One start of the server of this process, which a thread waits for."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.server: SubprocessASGIServer | None = None
        self.answers = False
        self.faults: list[BaseException] = []
        self.guard: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Start the process, and do not wait. Does nothing where the server runs already.

        Prefect itself, which takes seconds to import, is imported by `wait`, while the server does the same.
        """
        imported = sys.modules.get("prefect.server.api.server")
        self.answers = imported is not None and imported.SubprocessASGIServer().running
        if not self.answers:
            self._serve()

    def wait(self) -> None:
        """Start, if it was not begun, and wait until the server answers. Raises MedadError."""
        if self.process is None:
            self.begin()
        if self.answers:
            return
        from prefect.server.api.server import SubprocessASGIServer

        self._look()
        self.server = SubprocessASGIServer()  # one a process: Prefect's client uses the one that runs
        self.server.port = self.port
        self.server._run_uvicorn_command = lambda: self.process  # what `start` calls to get its process
        thread = threading.Thread(target=self._start, args=(self.server,), name="medad-server", daemon=True)
        thread.start()
        while thread.is_alive():
            self._look()
            thread.join(POLL_S)
        self._look()
        if self.faults:
            raise _not_started(first_line(self.faults[0]))
        if self.guard is not None:
            # Python calls the last one first, before Prefect stops the server: a later signal could reach another
            # process of that number.
            atexit.register(self.guard.kill)
        self.answers = True

    def stop(self) -> None:
        """End what was begun."""
        if self.guard is not None:
            self.guard.kill()
        if self.server is not None:
            self.server.stop()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()  # it keeps nothing
            self.process.wait()

    def _start(self, server: SubprocessASGIServer) -> None:
        try:
            server.start()
        except BaseException as error:  # also of a server that was stopped meanwhile
            self.faults.append(error)

    def _serve(self) -> None:
        """Start the server at a free port that this process has bound, with an authentication string."""
        from flows.orchestrator import has_prefect_settings

        settings = {}
        if has_prefect_settings():
            from prefect.settings import get_current_settings

            settings = get_current_settings().to_environment_variables(exclude_unset=True)
        text = new_auth_string()
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            self.process = subprocess.Popen(
                python_command("-m", "flows.api_server", str(bound.fileno())),
                env={**os.environ, **settings, **ENVIRONMENT, SERVER: text},
                pass_fds=[bound.fileno()],
            )
            self.port = bound.getsockname()[1]
        self.guard = _guard(self.process.pid)  # from its first moment, seconds before it answers
        set_client_auth_string(text)

    def _look(self) -> None:
        """Notice the end of the process, which Prefect does not. Raises MedadError."""
        code = None if self.process is None else self.process.poll()
        if code is not None:
            raise _not_started(f"it ended with exit code {code}, and what it printed is above")


def _not_started(reason: str) -> MedadError:
    return MedadError(
        f"Prefect's temporary server could not be started: {reason}; `medad doctor` shows what may be in its way"
    )


def _guard(pid: int) -> subprocess.Popen[bytes]:
    guard = subprocess.Popen(
        ["sh", "-c", 'read -r _; kill "$0"', str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    atexit.register(guard.kill)
    return guard

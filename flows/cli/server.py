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
import threading
from typing import TYPE_CHECKING, Any

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
    """Start the server that the first flow would start, with its guard.

    Nothing is started where a real server is configured, or where Prefect may start none. Raises MedadError where it
    does not answer; then nothing of it is left.
    """
    from prefect.settings import PREFECT_SERVER_ALLOW_EPHEMERAL_MODE

    from flows.orchestrator import server_url

    url = server_url()
    if url:
        use_auth_string(url)
        return
    if not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        return
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()  # one a process: Prefect's client uses the one that runs
    if not server.running:
        _Start(server).run()


class _Start:
    """One start of `server`, in a thread of its own."""

    def __init__(self, server: SubprocessASGIServer) -> None:
        self.server = server
        self.faults: list[BaseException] = []
        self.guard: subprocess.Popen[bytes] | None = None
        self.thread = threading.Thread(target=self._start, name="medad-server", daemon=True)

    def run(self) -> None:
        self.server._run_uvicorn_command = self._serve  # what `start` calls to get its process
        self.thread.start()
        try:
            while self.thread.is_alive():
                self._look()
                self.thread.join(POLL_S)
            self._look()
            if self.faults:
                raise _not_started(first_line(self.faults[0]))
        except BaseException:
            self._stop()
            raise

    def _start(self) -> None:
        try:
            self.server.start()
        except BaseException as error:  # also of a server that was stopped meanwhile
            self.faults.append(error)

    def _serve(self) -> subprocess.Popen[bytes]:
        """The process of the server, at a free port that this process has bound, with an authentication string."""
        from prefect.settings import get_current_settings

        text = new_auth_string()
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            process = subprocess.Popen(
                python_command("-m", "flows.api_server", str(bound.fileno())),
                env={**os.environ, **settings, **ENVIRONMENT, SERVER: text},
                pass_fds=[bound.fileno()],
            )
            self.server.port = bound.getsockname()[1]
        set_client_auth_string(text)
        return process

    def _look(self) -> None:
        """Guard the process from its first moment, seconds before it answers; notice its end, which Prefect does not.

        Raises MedadError where it ended.
        """
        process: subprocess.Popen[Any] | None = self.server.server_process
        if process is None:
            return
        if self.guard is None:
            self.guard = _guard(process.pid)
        code = process.poll()
        if code is not None:
            raise _not_started(f"it ended with exit code {code}, and what it printed is above")

    def _stop(self) -> None:
        if self.guard is not None:
            self.guard.kill()
        self.server.stop()


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
    # Python calls this before Prefect stops the server: a later signal could reach another process of that number.
    atexit.register(guard.kill)
    return guard

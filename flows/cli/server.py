"""Prefect's temporary server, which a command without PREFECT_API_URL starts for itself, ends with the command.

One decision: Prefect stops it when Python exits, and a killed process never does that. A shell beside the server waits
for the end of a pipe that only the command holds. So the server ends with the command, however that ends. A server that
cannot be started is ended at once, and so is the command: Prefect would start another one and forget the first.
"""

from __future__ import annotations

import atexit
import subprocess
import threading
from typing import TYPE_CHECKING, Any

from medad_core.errors import MedadError, first_line

if TYPE_CHECKING:
    from prefect.server.api.server import SubprocessASGIServer

POLL_S = 0.01
PORT_TAKEN = 3  # uvicorn's exit code when it cannot start: Prefect tries another port
STARTS = 5  # that are enough to meet a free port


def start_temporary_server() -> None:
    """Start the server that the first flow would start, with its guard.

    Nothing is started where a real server is configured, or where Prefect may start none. Raises MedadError where it
    does not answer; then nothing of it is left.
    """
    from prefect.settings import PREFECT_SERVER_ALLOW_EPHEMERAL_MODE

    from flows.orchestrator import server_url

    if server_url() or not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
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
        self.guards: dict[int, subprocess.Popen[bytes]] = {}  # by the number of the process
        self.thread = threading.Thread(target=self._start, name="medad-server", daemon=True)

    def run(self) -> None:
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

    def _look(self) -> None:
        """Guard the process from its first moment, seconds before it answers; notice its end, which Prefect does not.

        Raises MedadError where it ended.
        """
        process: subprocess.Popen[Any] | None = self.server.server_process
        if process is None:
            return
        if process.pid not in self.guards:
            self.guards[process.pid] = _guard(process.pid)
        code = process.poll()
        if code is not None and (code != PORT_TAKEN or len(self.guards) >= STARTS):
            raise _not_started(f"it ended with exit code {code}, and what it printed is above")

    def _stop(self) -> None:
        for guard in self.guards.values():
            guard.kill()
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

"""Prefect's temporary server, which a command without PREFECT_API_URL starts for itself, ends with the command.

One decision: Prefect stops it when Python exits, which a killed process does not come to. A shell beside it waits for the end of a pipe that
only the command holds, so however the command ends, the server does too.
"""

from __future__ import annotations

import atexit
import subprocess
import threading
import time

from flows.orchestrator import server_url

POLL_S = 0.01


def start_temporary_server() -> None:
    """Start the server that the first flow would start, with its guard; nothing where a real one is configured, or none is allowed."""
    from prefect.settings import PREFECT_SERVER_ALLOW_EPHEMERAL_MODE

    if server_url() or not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        return
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()  # one a process: Prefect's client will find this one running
    if server.running:
        return
    starting = threading.Thread(target=server.start, name="medad-server", daemon=True)
    starting.start()
    while server.server_process is None and starting.is_alive():
        time.sleep(POLL_S)  # guarded from its first moment, and not when it answers, seconds later
    if server.server_process is not None:
        _guard(server.server_process.pid)
    starting.join()


def _guard(pid: int) -> None:
    guard = subprocess.Popen(
        ["sh", "-c", 'read -r _; kill "$0"', str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    atexit.register(
        guard.kill
    )  # before Prefect stops the server itself, so that no other process of that number is meant

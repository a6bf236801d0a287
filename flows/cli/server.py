"""Prefect's temporary server, which a command without PREFECT_API_URL starts for itself, ends with the command.

One decision: Prefect stops it when Python exits, and a killed process never does that. A shell beside the server waits
for the end of a pipe that only the command holds. So the server ends with the command, however that ends.
"""

from __future__ import annotations

import atexit
import subprocess
import threading
import time

from flows.orchestrator import server_url

POLL_S = 0.01


def start_temporary_server() -> None:
    """Start the server that the first flow would start, with its guard.

    Nothing is started where a real server is configured, or where Prefect may start none.
    """
    from prefect.settings import PREFECT_SERVER_ALLOW_EPHEMERAL_MODE

    if server_url() or not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        return
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()  # one a process: Prefect's client uses the one that runs
    if server.running:
        return
    starting = threading.Thread(target=server.start, name="medad-server", daemon=True)
    starting.start()
    while server.server_process is None and starting.is_alive():
        time.sleep(POLL_S)  # the guard has to be there from the server's first moment, seconds before it answers
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
    # Python calls this before Prefect stops the server: a later signal could reach another process of that number.
    atexit.register(guard.kill)

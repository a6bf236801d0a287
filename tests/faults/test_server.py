"""A Prefect server that is killed in the middle of a run.

Where it comes back, the run ends as if nothing had been; where it does not, the run ends with one line.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from disturbed import ends, same_rows, screening, start, until

pytest_plugins = ("prefect_harness",)


class Server:
    """A real server with a database of its own, which can be killed and started again at the same address."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.start()

    def start(self) -> None:
        uvicorn = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
        command = [*uvicorn, "--host", "127.0.0.1", "--port", str(self.port), "--log-level", "error"]
        self.process = subprocess.Popen(
            command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(self._answers, self.process)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health").status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture
def mortal(tmp_path):
    server = Server(tmp_path / "home")
    yield server
    server.kill()


def test_a_server_that_dies_stops_no_run_if_it_comes_back_and_is_named_in_one_line_if_not(screened, mortal, tmp_path):
    run = tmp_path / "run"
    # Two retries, because SQLite is busy at times (503).
    process = start(screening(screened, run), server=mortal.url, PREFECT_CLIENT_MAX_RETRIES="2")
    until((run / "slices" / "_parts" / "00000.json").exists, process)
    mortal.kill()
    assert f"medad: the Prefect server at 127.0.0.1:{mortal.port} answers no more" in ends(process, 1)

    mortal.start()
    process = start(screening(screened, run), server=mortal.url)
    until((run / "maps" / "_plan.json").exists, process)
    mortal.kill()
    mortal.start()
    ends(process, 3)
    same_rows(screened, run)

"""A Prefect server and a worker for each of its pools, which start and end together.

One decision: they are Prefect's own commands, each a process group with the flow runs that it starts. All of them end
when asked to, when one of them dies, and when this process is killed. A run that ends with its worker is marked as
crashed, now or by the next `medad serve`: nobody else would, and its deployment would take it for running still.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from flows.cli.groups import GRACE_S, Group
from flows.orchestrator import server_fault
from medad_core.errors import MedadError
from medad_core.surroundings.processes import piped_environment, python_command
from medad_core.surroundings.proxies import settle_proxies

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun
    from rich.console import Console

START_S = 180.0  # a server with an empty database takes a minute on a small machine
HEALTH_TIMEOUT_S = 5.0
HEALTH_POLL_S = 0.5  # each look takes CPU time from the server that starts
SERVER_GRACE_S = 3.0  # a server waits for open connections, for ever
REPORT_TIMEOUT_S = 5.0  # that a server has to take which runs crashed
SERVICE_ENVIRONMENT = {  # where the user has set nothing else
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Slots of runs that died with the server are given back after its next start; those in its memory never would be.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PYTHONUNBUFFERED": "1",
}
FLOW_RUN_VARIABLES = (  # those of `flows.cli.quiet.PREFECT` that flow runs need as well
    "PREFECT_LOGGING_EXTRA_LOGGERS",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW",
    "PREFECT_CLIENT_MAX_RETRIES",
)


class Service:
    """The server and its workers. Each number in `signals` asks it to end; a second one means at once."""

    def __init__(self, host: str, port: int, pools: Sequence[str], console: Console) -> None:
        self.host = host
        self.port = port
        self.console = console
        self.url = _url(host, port)
        self.workers = {pool: f"{socket.gethostname()}:{port} {pool}" for pool in pools}
        self.groups: list[Group] = []
        self.signals: list[int] = []
        self.environment = _service_environment(f"{self.url}/api")

    def start(self) -> bool:
        """Start all. False where a signal came, or a group ended, meanwhile.

        Raises MedadError where the server does not answer within START_S.
        """
        self._start_group("server", "server", "start", "--host", self.host, "--port", str(self.port))
        self._wait_for_server()
        if self.is_running():
            mark_crashed(self.url, self.workers.values())  # of a machine that lost its power
        for pool, name in self.workers.items():
            if self.is_running():
                worker = ["worker", "start", "--pool", pool, "--type", "process", "--name", name]
                self._start_group(f"worker of {pool}", *worker, "--install-policy", "never")
        return self.is_running()

    def is_running(self) -> bool:
        """Whether no signal came and no group has ended."""
        return not self.signals and self.ended_group() is None

    def ended_group(self) -> Group | None:
        """The first group whose command has ended."""
        return next((group for group in self.groups if group.has_ended()), None)

    def stop(self) -> None:
        """End all: workers first, because their flow runs report to the server how they end."""
        server = self.groups[:1]  # none where it could not be started
        workers = self.groups[1:]
        server_runs = bool(server) and not server[0].has_ended()
        endings = [threading.Thread(target=group.end, args=(GRACE_S, self._at_once)) for group in workers]
        for ending in endings:
            ending.start()
        for ending in endings:
            ending.join()
        if server_runs and workers and not self._at_once():
            mark_crashed(self.url, self.workers.values())
        for group in server:
            group.end(SERVER_GRACE_S, self._at_once)

    def _wait_for_server(self) -> None:
        until = time.monotonic() + START_S
        while self.is_running() and not self._server_answers():
            if time.monotonic() > until:
                raise MedadError(
                    f"the Prefect server did not answer within {START_S:.0f} s; "
                    f"start it alone to see why: prefect server start --port {self.port}"
                )
            time.sleep(HEALTH_POLL_S)

    def _server_answers(self) -> bool:
        return server_fault(f"{self.url}/api", HEALTH_TIMEOUT_S, trust_env=False) is None

    def _at_once(self) -> bool:
        return len(self.signals) > 1

    def _start_group(self, name: str, *words: str) -> None:
        command = python_command("-m", "prefect", "--no-prompt", *words)
        self.groups.append(Group(name, command, self.environment, self._print, once=name == "server"))

    def _print(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)


def _url(host: str, port: int) -> str:
    """Where a server that listens on `host` is reached from this machine."""
    address = "127.0.0.1" if host == "0.0.0.0" else host
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def _service_environment(api_url: str) -> dict[str, str]:
    """Environment of server and workers: what the user has set comes before our defaults."""
    from flows.cli.quiet import LIBRARIES, PREFECT

    password = os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    if password is not None:  # workers need it, and so does `mark_crashed` in this process
        os.environ.setdefault("PREFECT_API_AUTH_STRING", password)
    flow_runs = {name: PREFECT[name] for name in FLOW_RUN_VARIABLES}
    settle_proxies(api_url)
    return {**LIBRARIES, **SERVICE_ENVIRONMENT, **flow_runs, **piped_environment(), "PREFECT_API_URL": api_url}


def mark_crashed(url: str, workers: Collection[str]) -> None:
    """Set the unfinished flow runs of `workers`, and the flow runs within them, to Crashed on the server at `url`.

    A server that does not answer is left alone.
    """
    from prefect import get_client
    from prefect.settings import (
        PREFECT_API_REQUEST_TIMEOUT,
        PREFECT_API_URL,
        PREFECT_CLIENT_MAX_RETRIES,
        temporary_settings,
    )
    from prefect.states import Crashed

    settings = {
        PREFECT_API_URL: f"{url}/api",
        PREFECT_API_REQUEST_TIMEOUT: REPORT_TIMEOUT_S,
        PREFECT_CLIENT_MAX_RETRIES: 0,
    }
    message = "It ended with its worker; the next run goes on where it stopped."
    try:
        with temporary_settings(settings), get_client(sync_client=True) as client:
            for run in _unfinished_runs(client, workers):
                client.set_flow_run_state(run.id, Crashed(message=message))
    except Exception:  # the files have the state of the work; this is for people who look at the server
        return


def _unfinished_runs(client: SyncPrefectClient, workers: Collection[str]) -> list[FlowRun]:
    """Flow runs of `workers` that the server takes for running, and the flow runs that these started."""
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterParentFlowRunId,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType

    unfinished = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
    state = FlowRunFilterState(type=unfinished)
    runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(state=state))
    own = [run for run in runs if run.labels.get("prefect.worker.name") in workers]
    if not own:
        return []
    parents = FlowRunFilterParentFlowRunId(any_=[run.id for run in own])
    within = client.read_flow_runs(flow_run_filter=FlowRunFilter(state=state, parent_flow_run_id=parents))
    return [*own, *within]

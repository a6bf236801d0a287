"""A Prefect server and a worker for each of its pools, which start and end together.

One decision: they are Prefect's own programs, each a process group with the flow runs that it starts. All of them end
when asked to, when one of them dies, and when this process is killed. A run that ends with its worker is marked as
crashed, now or by the next `medad serve`: nobody else would, and its deployment would take it for running still.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from flows.access import CLIENT, SERVER, server_auth_string
from flows.cli.groups import GRACE_S, Group
from flows.orchestrator import server_fault
from medad_core.errors import MedadError, in_one_line
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
REQUEST_TIMEOUT_S = 5.0  # that a server has to take which runs crashed, or a work pool
SERVICE_ENVIRONMENT = {  # where the user has set nothing else
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Slots of runs that died with the server are given back after its next start; those in its memory never would be.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
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
        self.auth_string = server_auth_string()
        self.environment = _service_environment(self)

    def start(self) -> bool:
        """Start all. False where a signal came, or a group ended, meanwhile.

        Raises MedadError where the server does not answer within START_S.
        """
        self._start_group("server", "flows.api_server", self.host, str(self.port))
        self._wait_for_server()
        if self.is_running():
            self._mark_crashed()  # of a machine that lost its power
            self._ensure_pools()
        for pool, name in self.workers.items():
            if self.is_running():
                words = ["--pool", pool, "--type", "process", "--name", name, "--install-policy", "never"]
                self._start_group(f"worker of {pool}", "prefect", "--no-prompt", "worker", "start", *words)
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
            self._mark_crashed()
        for group in server:
            group.end(SERVER_GRACE_S, self._at_once)

    def _wait_for_server(self) -> None:
        until = time.monotonic() + START_S
        while self.is_running() and not self._server_answers():
            if time.monotonic() > until:
                for line in self.groups[0].last:
                    self._print(line)
                raise MedadError(
                    f"the Prefect server did not answer within {START_S:.0f} s; its last lines are above, "
                    "and `medad doctor` shows what may be in its way"
                )
            time.sleep(HEALTH_POLL_S)

    def _server_answers(self) -> bool:
        return server_fault(f"{self.url}/api", HEALTH_TIMEOUT_S, trust_env=False) is None

    def _mark_crashed(self) -> None:
        with suppress(Exception), self._client() as client:  # the files have the state of the work; this is for people
            mark_crashed(client, self.workers.values())

    def _ensure_pools(self) -> None:
        """Raises MedadError where the server does not take them: its workers would make open ones."""
        from flows.pools import ensure_pool

        try:
            with self._client() as client:
                for pool in self.workers:
                    ensure_pool(client, pool)
        except Exception as error:
            raise MedadError(f"the Prefect server does not take the work pools: {in_one_line(error)}") from error

    @contextmanager
    def _client(self) -> Iterator[SyncPrefectClient]:
        """A client of the server, which gives up soon."""
        from prefect import get_client
        from prefect.settings import (
            PREFECT_API_AUTH_STRING,
            PREFECT_API_REQUEST_TIMEOUT,
            PREFECT_API_URL,
            PREFECT_CLIENT_MAX_RETRIES,
            temporary_settings,
        )

        settings = {
            PREFECT_API_URL: f"{self.url}/api",
            PREFECT_API_AUTH_STRING: self.auth_string,
            PREFECT_API_REQUEST_TIMEOUT: REQUEST_TIMEOUT_S,
            PREFECT_CLIENT_MAX_RETRIES: 0,
        }
        with temporary_settings(settings), get_client(sync_client=True) as client:
            yield client

    def _at_once(self) -> bool:
        return len(self.signals) > 1

    def _start_group(self, name: str, *words: str) -> None:
        command = python_command("-m", *words)
        self.groups.append(Group(name, command, self.environment, self._print, once=name == "server"))

    def _print(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)


def _url(host: str, port: int) -> str:
    """Where a server that listens on `host` is reached from this machine."""
    address = "127.0.0.1" if host == "0.0.0.0" else host
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def _service_environment(service: Service) -> dict[str, str]:
    """Environment of server and workers: what the user has set comes before our defaults."""
    from flows.cli.quiet import LIBRARIES, PREFECT

    api_url = f"{service.url}/api"
    flow_runs = {name: PREFECT[name] for name in FLOW_RUN_VARIABLES}
    settle_proxies(api_url)
    # Its page asks the server by one address, and is opened by either.
    origins = dict.fromkeys([service.url, f"http://127.0.0.1:{service.port}", f"http://localhost:{service.port}"])
    return {
        **LIBRARIES,
        **SERVICE_ENVIRONMENT,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(origins),
        **flow_runs,
        **piped_environment(),
        "PREFECT_API_URL": api_url,
        SERVER: service.auth_string,
        CLIENT: service.auth_string,
    }


def mark_crashed(client: SyncPrefectClient, workers: Collection[str]) -> None:
    """Set the unfinished flow runs of `workers`, and the flow runs within them, to Crashed."""
    from prefect.states import Crashed

    message = "It ended with its worker; the next run goes on where it stopped."
    for run in _unfinished_runs(client, workers):
        client.set_flow_run_state(run.id, Crashed(message=message))


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

"""`medad serve`: a Prefect server and its workers on one machine, in the foreground.

One decision: they are Prefect's own commands, each a process group with the flow runs that it starts, so that all of them end together: when
asked to, when one of them dies, and when this command is killed. A run that ends with its worker is marked as crashed, now or by the next
`medad serve`: nobody else would, and its deployment would take it for running still.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from flows.cli.command import OK
from flows.cli.groups import GRACE_S, POLL_S, Group
from medad_core.errors import MedadError, UsageError

START_S = 180.0  # a server with an empty database takes a minute on a small machine
SERVER_GRACE_S = 3.0  # a server waits for open connections, for ever
ANSWER_S = 5.0  # that a server has to take what died
ENVIRONMENT = {  # beside what the user has set
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Slots of runs that died with the server are given back after its next start; those that it keeps in memory never would be.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PYTHONUNBUFFERED": "1",
}
OF_COMMANDS = (
    "PREFECT_LOGGING_EXTRA_LOGGERS",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW",
    "PREFECT_CLIENT_MAX_RETRIES",
)  # that flow runs need as well


class Service:
    """The server, and a worker for every pool."""

    def __init__(self, host: str, port: int, pools: Sequence[str], console) -> None:
        from flows.cli.quiet import LIBRARIES, PREFECT

        self.host, self.port, self.console = host, port, console
        self.reached = "127.0.0.1" if host == "0.0.0.0" else host
        self.url = f"http://{self.reached}:{port}"
        self.workers = {pool: f"{socket.gethostname()}:{port} {pool}" for pool in pools}
        if "PREFECT_SERVER_API_AUTH_STRING" in os.environ:  # workers, and what is told here, have to know it
            os.environ.setdefault("PREFECT_API_AUTH_STRING", os.environ["PREFECT_SERVER_API_AUTH_STRING"])
        given = {name: PREFECT[name] for name in OF_COMMANDS}
        self.environment = {**LIBRARIES, **ENVIRONMENT, **given, **os.environ, "PREFECT_API_URL": f"{self.url}/api"}
        self.groups: list[Group] = []
        self.asked: list[int] = []

    def open(self) -> bool:
        """Start all; False where it was asked to end, or one of them died, meanwhile."""
        self._start("server", "server", "start", "--host", self.host, "--port", str(self.port))
        until = time.monotonic() + START_S
        while self.stands() and not _answers(self.reached, self.port):
            if time.monotonic() > until:
                raise MedadError(
                    f"the Prefect server did not answer within {START_S:.0f} s; start it alone to see why: prefect server start --port {self.port}"
                )
            time.sleep(POLL_S)
        if self.stands():
            mark_crashed(self.url, self.workers.values())  # of a machine that lost its power
        for pool, name in self.workers.items():
            if self.stands():
                self._start(
                    f"worker of {pool}",
                    "worker",
                    "start",
                    "--pool",
                    pool,
                    "--type",
                    "process",
                    "--name",
                    name,
                    "--install-policy",
                    "never",
                )
        return self.stands()

    def stands(self) -> bool:
        """Whether nobody asked to end and nothing has ended."""
        return not self.asked and self.lost() is None

    def lost(self) -> Group | None:
        """What ended by itself."""
        return next((group for group in self.groups if group.ended()), None)

    def close(self) -> None:
        """End all: workers first, because their flow runs have something to tell the server. A second signal means at once."""
        served = bool(self.groups) and not self.groups[0].ended()
        ending = [threading.Thread(target=group.end, args=(GRACE_S, self._at_once)) for group in self.groups[1:]]
        for thread in ending:
            thread.start()
        for thread in ending:
            thread.join()
        if served and ending and not self._at_once():
            mark_crashed(self.url, self.workers.values())
        for server in self.groups[:1]:
            server.end(SERVER_GRACE_S, self._at_once)

    def _at_once(self) -> bool:
        return len(self.asked) > 1

    def _start(self, name: str, *words: str) -> None:
        self.groups.append(
            Group(
                name,
                [sys.executable, "-m", "prefect", "--no-prompt", *words],
                self.environment,
                self._print,
                once=name == "server",
            )
        )

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)


def serve(
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="Address to listen on. The server asks nobody for a password: leave it at this machine, or set PREFECT_SERVER_API_AUTH_STRING.",
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 4200,
    pool: Annotated[
        list[str] | None,
        typer.Option(
            "--pool", metavar="POOL", help="Work pool to work for; may be given more than once. [default: medad-cpu]"
        ),
    ] = None,
) -> int:
    """Run a Prefect server and a worker here, until Ctrl-C: for one machine. SQLite in PREFECT_HOME, or PREFECT_API_DATABASE_CONNECTION_URL."""
    from flows.cli.tables import terminal

    _check_port(host, port)
    stdout, stderr = terminal(), terminal(stderr=True)
    service = Service(host, port, pool or ["medad-cpu"], stderr)
    with _noted_signals(service.asked):
        try:
            if service.open():
                stdout.print(
                    f"Prefect server {service.url} with {_database()}; work pools {', '.join(service.workers)}; Ctrl-C ends both",
                    soft_wrap=True,
                )
                stdout.print(f"elsewhere: export PREFECT_API_URL={service.url}/api", soft_wrap=True)
            while service.stands():
                time.sleep(POLL_S)
            lost = None if service.asked else service.lost()
        finally:
            service.close()
    if lost is None:
        return OK
    for line in lost.last:
        stderr.print(f"{lost.name} | {line}", markup=False, soft_wrap=True)
    raise MedadError(
        f"the {lost.name} ended by itself, with exit code {lost.process.returncode}; its last lines are above, the rest was stopped"
    )


def mark_crashed(url: str, workers: Collection[str]) -> None:
    """Tell the server that no flow run of these workers, nor a flow within one, runs any more. A server that does not listen is left alone."""
    from prefect import get_client
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterParentFlowRunId,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.settings import (
        PREFECT_API_REQUEST_TIMEOUT,
        PREFECT_API_URL,
        PREFECT_CLIENT_MAX_RETRIES,
        temporary_settings,
    )
    from prefect.states import Crashed

    settings = {PREFECT_API_URL: f"{url}/api", PREFECT_API_REQUEST_TIMEOUT: ANSWER_S, PREFECT_CLIENT_MAX_RETRIES: 0}
    going = FlowRunFilterState(
        type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
    )
    try:
        with temporary_settings(settings), get_client(sync_client=True) as client:
            runs = [
                run
                for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(state=going))
                if run.labels.get("prefect.worker.name") in workers
            ]
            if runs:
                within = FlowRunFilterParentFlowRunId(any_=[run.id for run in runs])
                runs += client.read_flow_runs(flow_run_filter=FlowRunFilter(state=going, parent_flow_run_id=within))
            for run in runs:
                client.set_flow_run_state(
                    run.id, Crashed(message="It ended with its worker; the next run goes on where it stopped.")
                )
    except Exception:  # the files have the state of the work; this is for people who look at the server
        return


@contextmanager
def _noted_signals(asked: list[int]) -> Iterator[None]:
    """Note SIGTERM and SIGINT that come while the block runs."""
    before = {
        number: signal.signal(number, lambda number, _: asked.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_port(host: str, port: int) -> None:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UsageError(
            f"cannot listen on port {port} of {host}: {error.strerror.lower()}; choose another with --port or --host"
        ) from error


def _answers(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=5)  # no proxy comes between
    try:
        connection.request("GET", "/api/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _database() -> str:
    """The server's database, without its password."""
    from prefect.settings import get_current_settings
    from sqlalchemy import make_url

    url = get_current_settings().server.database.connection_url
    return make_url(url.get_secret_value()).render_as_string(hide_password=True) if url else "SQLite"

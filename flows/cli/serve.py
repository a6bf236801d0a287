"""`medad serve`: a Prefect server and its workers on one machine, in the foreground."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.command import OK
from flows.cli.groups import POLL_S, Group
from medad_core.errors import MedadError, UsageError

if TYPE_CHECKING:
    from flows.cli.service import Service

HOST_HELP = (
    "Address to listen on. At one that other machines reach, nothing is encrypted: "
    "leave it at this machine, or on a network that you trust."
)
POOL_HELP = "Work pool to work for; may be given more than once. [default: medad-cpu]"


def serve(
    host: Annotated[str, typer.Option("--host", help=HOST_HELP)] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 4200,
    pool: Annotated[list[str] | None, typer.Option("--pool", metavar="POOL", help=POOL_HELP)] = None,
) -> int:
    """Run a Prefect server and a worker here, until Ctrl-C: for one machine.

    SQLite in PREFECT_HOME, or PREFECT_API_DATABASE_CONNECTION_URL.
    """
    from flows.cli.service import Service
    from flows.cli.terminal import terminal
    from medad_core.config import NotifySettings
    from medad_core.notify import keep_webhook

    keep_webhook(NotifySettings())
    _check_port(host, port)
    stdout = terminal()
    stderr = terminal(stderr=True)
    service = Service(host, port, pool or ["medad-cpu"], stderr)
    with _collect_signals(service.signals):
        try:
            if service.start():
                for line in _greeting(service):
                    stdout.print(line, soft_wrap=True)
            while service.is_running():
                time.sleep(POLL_S)
            ended = None if service.signals else service.ended_group()
        finally:
            service.stop()
    if ended is None:
        return OK
    for line in ended.last:
        stderr.print(f"{ended.name} | {line}", soft_wrap=True)
    raise _ended_by_itself(ended)


def _greeting(service: Service) -> tuple[str, str]:
    pools = ", ".join(service.workers)
    return (
        f"Prefect server {service.url} with {_database()}; work pools {pools}; Ctrl-C ends both",
        f"elsewhere: export PREFECT_API_URL={service.url}/api; {_access()}",
    )


def _access() -> str:
    """How others than `medad` get the server's authentication string, which is never shown."""
    from prefect.settings import PREFECT_SERVER_API_AUTH_STRING

    from flows.access import CLIENT, SERVER, how_to_export

    if PREFECT_SERVER_API_AUTH_STRING.value():
        return f"{CLIENT} as in {SERVER}"
    return f"for commands of Prefect's own also {how_to_export()}"


def _ended_by_itself(group: Group) -> MedadError:
    return MedadError(
        f"the {group.name} ended by itself, with exit code {group.process.returncode}; "
        "its last lines are above, the rest was stopped"
    )


@contextmanager
def _collect_signals(numbers: list[int]) -> Iterator[None]:
    """Append SIGTERM and SIGINT to `numbers` while the block runs, instead of ending for them."""
    before = {
        number: signal.signal(number, lambda number, _: numbers.append(number))
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
        reason = str(error.strerror).lower()
        raise UsageError(
            f"cannot listen on port {port} of {host}: {reason}; choose another with --port or --host"
        ) from error


def _database() -> str:
    """The server's database, without its password."""
    from prefect.settings import get_current_settings
    from sqlalchemy import make_url

    url = get_current_settings().server.database.connection_url
    return make_url(url.get_secret_value()).render_as_string(hide_password=True) if url else "SQLite"

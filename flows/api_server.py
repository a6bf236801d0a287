"""Prefect's server as medad starts it: `python -m flows.api_server HOST PORT`, or `… FD` of a socket that is bound.

Two decisions. The application is Prefect's own, in front of which only the name in a request's `Host` is checked. A
page of the web whose name was pointed at this machine's address reaches nothing: its requests still bear that name. And
transactions of SQLite wait for each other.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from contextlib import AbstractAsyncContextManager, suppress
from typing import TYPE_CHECKING

from fastapi import FastAPI

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction


def hosts_of(address: str) -> list[str]:
    """The names by which a server that listens on `address` may be asked; all, where other machines may ask it."""
    try:
        is_local = ipaddress.ip_address(address).is_loopback
    except ValueError:
        is_local = address == "localhost"
    # Other machines know this one by names that it does not know itself.
    return ["localhost", "127.0.0.1", "[::1]", "::1", address, f"[{address}]"] if is_local else ["*"]


def application(address: str) -> FastAPI:
    """Prefect's application, which answers requests for `hosts_of(address)` alone."""
    from prefect.server.api.server import create_app
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    let_writers_wait()
    app = create_app(final=True)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts_of(address), www_redirect=False)
    return app


def let_writers_wait() -> None:
    """Let every transaction of SQLite begin as one that writes.

    Prefect begins it as one that reads. If that one writes after another one has written, it fails at once, whatever
    its timeout. The server then answers 503, and the client tries again after seconds, five times at most.
    """
    from prefect.server.database.configurations import AioSqliteConfiguration

    begin = AioSqliteConfiguration.begin_transaction

    def begin_to_write(
        self: AioSqliteConfiguration, session: AsyncSession, with_for_update: bool = True
    ) -> AbstractAsyncContextManager[AsyncSessionTransaction]:
        return begin(self, session, with_for_update=True)

    AioSqliteConfiguration.begin_transaction = begin_to_write


def main() -> None:
    """Run the server until a signal ends it."""
    import uvicorn
    from prefect.settings import get_current_settings

    settings = get_current_settings().server
    options = {
        "lifespan": "on",
        "timeout_keep_alive": settings.api.keepalive_timeout,
        "ws_ping_interval": settings.api.websocket_ping_interval,
        "ws_ping_timeout": settings.api.websocket_ping_timeout,
        "log_level": settings.logging_level.lower(),
    }
    if len(sys.argv) == 2:
        bound = socket.socket(fileno=int(sys.argv[1]))
        options["log_level"] = "error"
        config = uvicorn.Config(application(bound.getsockname()[0]), **options)
        server = uvicorn.Server(config)
        with suppress(KeyboardInterrupt):  # uvicorn has ended well, and raises it again for who called it
            server.run(sockets=[bound])
        sys.exit(0 if server.started else os.EX_UNAVAILABLE)
    host, port = sys.argv[1:]
    uvicorn.run(application(host), host=host, port=int(port), **options)


if __name__ == "__main__":
    main()

"""Sends optional updates to a Prefect server: in threads, with a short wait, and with a warning on failure."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable
from typing import Any

from flows.orchestrator import server_url
from medad_core.errors import in_one_line

log = logging.getLogger(__name__)
PATIENCE_S = 3.0  # the time that a run waits for the server to accept an update


def show_on_server(show: Callable[..., None], *args: Any) -> None:
    """Call `show` if a server is configured, wait PATIENCE_S at most, and warn on failure."""
    if server_url() is None:
        return

    def try_to_show() -> None:
        try:
            show(*args)
        except Exception as error:
            log.warning("the Prefect server does not show this: %s", in_one_line(error))

    in_background(try_to_show).join(PATIENCE_S)


def in_background(work: Callable[..., None], *args: Any) -> threading.Thread:
    """Start a daemon thread with the context of the flow run."""
    run = contextvars.copy_context().run  # a thread starts without the context
    thread = threading.Thread(target=run, args=(work, *args), name="medad-visible", daemon=True)
    thread.start()
    return thread

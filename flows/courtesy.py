"""Work that nobody waits for long: sent from threads, and a warning where it fails."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable
from typing import Any

from flows.orchestrator import server_url

log = logging.getLogger(__name__)
PATIENCE_S = 3.0  # that a run waits for a server to take what it shows


def show_on_server(show: Callable[..., None], *args: Any) -> None:
    """Call `show` for the server that is configured, wait for PATIENCE_S at most, and warn of what fails."""
    if server_url() is None:
        return

    def try_to_show() -> None:
        try:
            show(*args)
        except Exception as error:
            log.warning("the Prefect server does not show this: %s: %s", type(error).__name__, error)

    in_background(try_to_show).join(PATIENCE_S)


def in_background(work: Callable[..., None], *args: Any) -> threading.Thread:
    """Start a thread that ends with the process. It knows the flow run that it works for."""
    run = contextvars.copy_context().run  # a thread starts without the context
    thread = threading.Thread(target=run, args=(work, *args), name="medad-visible", daemon=True)
    thread.start()
    return thread

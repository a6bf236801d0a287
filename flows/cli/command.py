"""What every command of `medad` shares: exit codes, one line for what is wrong, and where output goes.

One decision: a command returns its exit code or raises; this module alone turns errors into codes (0 done, 1 failed, 2
wrong usage, 3 done but some cases rejected, 130 interrupted, 143 terminated). Nothing heavy is imported, so that
`medad --help` answers at once.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from flows.interruption import (
    INTERRUPTED,
    TERMINATED,
    Terminated,
    announce,
    end_if_left_behind,
    signals_as_errors,
)
from medad_core.errors import MedadError, UsageError, first_line
from medad_core.faults.classify import causes
from medad_core.media import visible
from medad_core.permissions import Mode, set_mode

if TYPE_CHECKING:
    from rich.console import Console

OK = 0
FAILED = 1
WRONG_USAGE = 2
SOME_REJECTED = 3
_shown = {"tracebacks": False}


class Consoles(NamedTuple):
    """Where results go (stdout), and where progress and complaints go (stderr)."""

    out: Console
    err: Console


def show_tracebacks(debug: bool) -> None:
    """`medad --debug`: errors keep their traceback and everything that is logged is shown."""
    _shown["tracebacks"] = debug


def group(**options: Any) -> typer.Typer:
    """A Typer application in the plain style of `medad`."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, **options)


def command(app: typer.Typer) -> Callable[[Callable[..., int | None]], Callable[..., None]]:
    """Register a function as a command of `app` under its own name: `make_it_` is `make-it`."""
    return lambda function: app.command(name=function.__name__.strip("_").replace("_", "-"))(exits(function))


def exits(function: Callable[..., int | None]) -> Callable[..., None]:
    """What the function returns, or raises, becomes the exit code."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with signals_as_errors():
                code = function(*args, **kwargs) or OK
        except MedadError as error:
            if _shown["tracebacks"]:
                raise
            complain(str(error))
            code = WRONG_USAGE if isinstance(error, UsageError) else FAILED
        except Exception as error:
            line = None if _shown["tracebacks"] else _line_of_server(error)
            if line is None:
                raise
            complain(line)
            code = FAILED
        except (KeyboardInterrupt, Terminated) as signal:
            code = TERMINATED if isinstance(signal, Terminated) else INTERRUPTED
            announce(code)
            end_if_left_behind(code)
        raise typer.Exit(code)

    return run


def complain(text: str) -> None:
    """Write one line to stderr."""
    typer.echo(f"medad: {visible(text)}", err=True)


def _line_of_server(error: Any) -> str | None:
    """What the user reads where Prefect's server ended the command; None for any other error."""
    for cause in causes(error):
        if _is_of_server(cause):
            return _server_gone(cause)
    exceptions = sys.modules.get("prefect.exceptions")
    if exceptions is not None and isinstance(error, exceptions.CancelledRun):
        return f"{first_line(error)}; the same command goes on where it stopped"
    return None


def _server_gone(error: Any) -> str:
    url = error.request.url
    server = f"the Prefect server at {url.host}:{url.port}"
    response = getattr(error, "response", None)
    if response is not None:
        return f"{server} could not do its part ({response.status_code}); see its log, and try the same command again"
    return f"{server} answers no more ({error}); once it runs, the same command goes on"


def _is_of_server(error: BaseException) -> bool:
    """Whether Prefect's server did not answer, or had an error of its own (5xx).

    The libraries are imported where this is so.
    """
    httpx = sys.modules.get("httpx")
    if httpx is None or not isinstance(error, httpx.TransportError | httpx.HTTPStatusError):
        return False
    if isinstance(error, httpx.HTTPStatusError) and not error.response.is_server_error:
        return False
    from flows.orchestrator import server_url

    return str(error.request.url).startswith(server_url() or "http://127.0.0.1:")


def consoles(online: bool = False, mode: Mode = "private") -> Consoles:
    """Both consoles; quietens the libraries, and keeps them off the network unless `online`.

    What the command writes from now on may be read as `mode` says (`store.mode`).

    Raises UsageError where the models' hub is behind a proxy that cannot be used.
    """
    from flows.cli.quiet import prepare_process
    from flows.cli.terminal import terminal

    set_mode(mode)
    terminals = Consoles(terminal(), terminal(stderr=True))
    prepare_process(_shown["tracebacks"], terminals.err, online)
    if online:
        from flows.orchestrator import check_proxy

        check_proxy("models.offline=false", os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    return terminals

"""The environment and logging of a `medad` command.

One decision: libraries are quietened by their own environment variables. They are set before the library is imported,
and only where the user has not set them: `PREFECT_LOGGING_LEVEL=DEBUG medad screen …` does what it says.
"""

from __future__ import annotations

import logging
import os
import warnings

from rich.console import Console
from rich.logging import RichHandler

from medad_core.media import visible

# `[tool.prefect]` of pyproject.toml says the same for work in the repository; a command runs in any folder.
PREFECT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # would write to the temporary server's SQLite while the run does
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # the default 20 s is too short on a small machine
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the command reports a failed run in one line, no traceback
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # reports only that events were lost while the server was away
    "PREFECT_CLIENT_MAX_RETRIES": "6",  # a run outlasts a server that is away for two minutes (2 + 4 + … + 64 s)
    "PREFECT_LOGGING_EXTRA_LOGGERS": "medad_core",  # what the core logs appears beside the runs of a real server
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_CLI_WARN_ON_VERSION_MISMATCH": "false",
}
LIBRARIES = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "GLOO_LOG_LEVEL": "ERROR",
}
OFFLINE = {"HF_HUB_OFFLINE": "1"}  # models are local unless models.offline is false: a misspelt name must fail at once


def prepare_process(debug: bool, console: Console, online: bool = False) -> None:
    """Set the defaults above, and send the core's warnings to `console`.

    `debug` keeps everything loud, `online` lets models be fetched.
    """
    for name, value in {**PREFECT, **({} if online else OFFLINE)}.items():
        if not (debug and "LOGGING" in name):
            os.environ.setdefault(name, value)
    if not debug:
        for name, value in LIBRARIES.items():
            os.environ.setdefault(name, value)
        warnings.filterwarnings("ignore")
    for name in ("medad_core", "tasks", "flows"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers[:] = [_handler(console, debug)]  # a second command in one process must not log everything twice
        logger.propagate = debug


class _OneLine(logging.Formatter):
    """A message may hold the name of a file; only a traceback has lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return visible(super().formatMessage(record))


def _handler(console: Console, debug: bool) -> logging.Handler:
    handler = RichHandler(
        console=console, show_path=False, show_time=False, show_level=False, markup=False, highlighter=None
    )
    handler.setLevel(logging.INFO if debug else logging.WARNING)
    handler.setFormatter(_OneLine("%(levelname)s: %(message)s"))
    return handler

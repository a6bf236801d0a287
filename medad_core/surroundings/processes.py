"""Python processes that medad starts: their command line and their environment.

One decision: a child process never imports from the folder that medad was called in. `python -c` and `python -m` put
that folder first, and a user's `secrets.py` there would be run in place of the standard library's. Where the command is
ours it gets `-P`; PYTHONSAFEPATH says the same to those whose command is not ours (Prefect's servers and flow runs,
pools of processes, vLLM). PYTHONPATH stays: on many clusters it is how packages are found, and whoever sets it means
it. Only its empty and relative entries go, because each is the folder that medad was called in, or lies in it.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import SpawnContext

# Each changes how any Python, or any uvicorn, runs: a prompt at the end, a file run first, four servers on one SQLite.
UNWANTED = ("PYTHONINSPECT", "PYTHONSTARTUP", "WEB_CONCURRENCY")
UNWANTED_START = "UVICORN_"
HANDLER = "backslashreplace"  # of characters that the encoding of the output lacks


def without_relative(python_path: str) -> str:
    """The entries of a PYTHONPATH that name the same folder wherever a process is started. Medad's own is one."""
    if not python_path:
        return ""  # as if it were not set
    own = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    entries = [own if os.path.abspath(entry) == own else entry for entry in python_path.split(os.pathsep)]
    return os.pathsep.join(entry for entry in entries if os.path.isabs(entry))


def python_command(*words: str) -> list[str]:
    """The command line of this Python with `words`, such as "-m" and a module, on a safe path."""
    return [sys.executable, "-P", *words]


def clean_environment() -> None:
    """Settle what Python processes read from the environment of this process, which they inherit."""
    os.environ["PYTHONSAFEPATH"] = "1"
    for name in list(os.environ):
        if name in UNWANTED or name.startswith(UNWANTED_START):
            del os.environ[name]
    if "PYTHONPATH" in os.environ:
        os.environ["PYTHONPATH"] = without_relative(os.environ["PYTHONPATH"])
    encoding = os.environ.get("PYTHONIOENCODING", "").partition(":")[0]
    os.environ["PYTHONIOENCODING"] = f"{encoding}:{HANDLER}"


def piped_environment() -> dict[str, str]:
    """The environment of a Python process whose output this process reads: it writes UTF-8."""
    clean_environment()
    return {**os.environ, "PYTHONIOENCODING": f"utf-8:{HANDLER}"}


def usable_cores() -> int:
    """How many cores this process may use, which a scheduler of jobs may have made fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spawn_context() -> SpawnContext:
    """The way to start worker processes: new interpreters, in a clean environment.

    They get `sys.path` of this process, so that what could be imported here can be imported there.
    """
    import multiprocessing

    clean_environment()
    return multiprocessing.get_context("spawn")

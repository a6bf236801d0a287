"""Imports the LLM's engine in a thread while maps are drawn.

One decision: only imports, no engine. vLLM's import takes a quarter of a minute of one core and depends on nothing; an
engine would take memory that the encoder has. It begins when the models of the maps are open and is waited for when the
maps are made, so that it meets no other large import: two threads that import what imports each other can fail. An
encoder on the CPU leaves it its share of a core and loses no more than that (`medad_core.models.lanes`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from medad_core.config import Settings
from medad_core.llm.engine import import_engine
from medad_core.stages import workers

log = logging.getLogger(__name__)


@contextmanager
def engine_imported_beside(settings: Settings, stage: str) -> Iterator[None]:
    """While the block makes `stage` in this process, import the engine of the settings beside its first part.

    Nothing is imported where the parts are made in other processes, or where none is made.
    """
    if settings.flow.runner == "thread":
        with done_beside(stage, partial(import_engine, settings.llm)):
            yield
    else:
        yield


@contextmanager
def done_beside(stage: str, work: Callable[[], None]) -> Iterator[None]:
    """Do `work` in a thread as soon as the models of `stage` are open in this process; the end of the block waits.

    Where they are never opened, nothing is done. Where the work fails, the stage that needs it does it again.
    """
    thread = threading.Thread(target=_try, args=(work,), name="medad-ahead", daemon=True)
    lock = threading.Lock()

    def begin(opened: str) -> None:
        with lock:
            if opened == stage and thread.ident is None:
                thread.start()

    workers.when_opened.append(begin)
    try:
        yield
    finally:
        workers.when_opened.remove(begin)
    if thread.ident is not None:
        thread.join()


def _try(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception as error:
        log.debug("what was to be done ahead failed (%s)", error)

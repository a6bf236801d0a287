"""Imports the LLM's engine in a thread while maps are drawn.

One decision: only imports, no engine. vLLM's import takes a quarter of a minute of one core and depends on nothing; an
engine would take memory that the encoder has. It begins when the models of the maps are open and is waited for when the
maps are made, so that it meets no other large import: two threads that import what imports each other can fail. Where
the encoder computes with every core, nothing is imported ahead: on two cores that took longer than one after another.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from medad_core.config import Settings
from medad_core.llm.engine import import_engine
from medad_core.models.device import device_of
from medad_core.stages import workers
from medad_core.surroundings.processes import usable_cores

log = logging.getLogger(__name__)


@contextmanager
def engine_imported_beside(settings: Settings, stage: str) -> Iterator[None]:
    """While the block makes `stage` in this process, import the engine of the settings beside its first part.

    Nothing is imported where the parts are made in other processes, where none is made, or where no core is free.
    """
    if settings.flow.runner == "thread" and is_core_free(settings):
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


def is_core_free(settings: Settings) -> bool:
    """Whether the encoder leaves a core alone: it computes on a GPU, or in fewer threads than there are cores."""
    computing = settings.models.threads or torch.get_num_threads()
    busy = 1 if device_of(settings) != "cpu" else computing * settings.flow.max_workers
    return usable_cores() > busy


def _try(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception as error:
        log.debug("what was to be done ahead failed (%s)", error)

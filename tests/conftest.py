"""Fixtures that more than one test module needs."""

from __future__ import annotations

import gc
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from medad_core import permissions

UMASK = os.umask(0o022)  # that of pytest itself
os.umask(UMASK)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real volumes beside the checkout; a test that needs them skips where they are not.

    They may not be copied into the project.
    """
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("MEDAD_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"real volumes are not at {folder}; set MEDAD_SHARED_DATA to their folder")
    return folder


@pytest.fixture(scope="module", autouse=True)
def collected():
    """An engine that opens or closes collects garbage, which takes a second among the objects of all that is imported.

    So these are frozen, and stay it; `test_models.py` sees that medad thaws what an engine has frozen.
    """
    memory = sys.modules.get("medad_core.models.memory")
    if memory is not None:
        memory.gc = SimpleNamespace(collect=gc.collect, unfreeze=lambda: None)
    gc.collect()
    gc.freeze()


_PACKAGED = {}  # the packaged LLM by its type, read once


@pytest.fixture(scope="module", autouse=True)
def one_llm():
    """Engines of this process share the packaged LLM, which is half a gigabyte and frozen. Others are read as ever."""
    engines = sys.modules.get("medad_core.llm.transformers_engine")
    if engines is None:
        yield
        return
    from medad_core.llm.engine import llm_folder

    read, packaged = engines.load_llm, llm_folder("smollm2-135m")

    def load(folder, *given):
        if folder != packaged:
            return read(folder, *given)
        if given not in _PACKAGED:
            _PACKAGED[given] = read(folder, *given)
        return _PACKAGED[given]

    engines.load_llm = load
    yield
    engines.load_llm = read


def _forget_mode() -> None:
    os.umask(UMASK)
    permissions._known.clear()


@pytest.fixture(autouse=True)
def untouched():
    """Puts environment, logging and threads back: a command sets those of its process, and that is pytest's."""
    environment = dict(os.environ)
    _forget_mode()  # that of a fixture of the module, which opened a run before
    loggers = [logging.getLogger(name) for name in ("medad_core", "tasks", "flows")]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    _forget_mode()
    os.environ.clear()
    os.environ.update(environment)
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.level, logger.propagate = handlers, level, propagate
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))

"""Fixtures that more than one test module needs."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest

from medad_core import permissions


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


@pytest.fixture(autouse=True)
def untouched():
    """Puts environment, logging and threads back: a command sets those of its process, and that is pytest's."""
    environment = dict(os.environ)
    umask = os.umask(0o022)
    os.umask(umask)
    modes = dict(permissions._known)
    loggers = [logging.getLogger(name) for name in ("medad_core", "tasks", "flows")]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    os.umask(umask)
    permissions._known.clear()
    permissions._known.update(modes)
    os.environ.clear()
    os.environ.update(environment)
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.level, logger.propagate = handlers, level, propagate
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))

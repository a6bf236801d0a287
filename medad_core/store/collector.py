"""Pauses Python's garbage collector while many long-lived objects are made.

The collector would scan all of them again and again. This would take most of the time of reading 100,000 records.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Collect no cycles while the block runs. Objects without references are still freed."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

"""The memory of this process that arrays of volumes come and go in.

One decision: where one volume after another is read, what was freed is kept for the next one. The C library gives large
blocks back to the system at once, and each page of the next array then costs a fault: a third of the time of
`medad inspect`.
"""

from __future__ import annotations

import ctypes
import sys

_OPTIONS = {-1: 2**31 - 1, -2: 2**28, -3: 2**30}  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD of mallopt(3)


def keep_freed_memory() -> None:
    """Let this process keep what it frees, up to 2 GiB a thread. Does nothing where the C library is not glibc."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in _OPTIONS.items():
            mallopt(option, value)

"""Whether two paths are one file or one folder: links, hard links and mounts give it several names.

One decision: device and inode say so, together with length and time of change, because some network file systems number
their files anew, and give a number twice.
"""

from __future__ import annotations

from medad_core.store.regular import Facts

Identity = tuple[int, int, int, int]


def identity(facts: Facts) -> Identity:
    """What is the same under every name of a file or folder, and differs between two of them."""
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns

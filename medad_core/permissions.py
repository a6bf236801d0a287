"""Who may read what medad writes (`store.mode`).

One decision: the process's umask says it. So it holds for every file, also for those that a library writes (pictures,
weights, logs) and for those of the processes that this one starts, and no function has to pass it on. A command, a flow
and whatever opens a run set it, before they write anything.
"""

from __future__ import annotations

import os
from typing import Literal

Mode = Literal["private", "group", "umask"]
_MASKS = {"private": 0o077, "group": 0o027}  # files 0600 and folders 0700; 0640 and 0750
_known: dict[str, int] = {}  # "given": the umask that the process was started with; "set": the one that it has now


def set_mode(mode: Mode) -> None:
    """Let the files and folders that this process writes from now on be read by nobody else, the group, or as before.

    `umask` is what the process was started with.
    """
    if "given" not in _known:
        _known["given"] = os.umask(_MASKS["private"])
    _known["set"] = _MASKS.get(mode, _known["given"])
    os.umask(_known["set"])


def file_mode() -> int | None:
    """The mode of new files, None where nothing was set: some libraries make their files private, whatever is said."""
    return 0o666 & ~_known["set"] if "set" in _known else None

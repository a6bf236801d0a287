"""Opening files that somebody else may have put there: a volume of the user, a lock in a shared folder.

One decision: a file is opened without waiting, and only then looked at, so nothing can be exchanged in between. What is
no regular file is an OSError: a pipe would be read for ever, and a link in place of a lock leads to a file of others.
An object of a bucket is opened by the same name for it, and has facts like those of a file.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO, TypeAlias, cast

from medad_core.store.objects import ObjectFacts, ObjectFile, facts_of, is_object

Facts: TypeAlias = os.stat_result | ObjectFacts
_LONGEST_TEXT = 1 << 28  # characters; a table of half a million cases has fewer
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def kind_of(facts: os.stat_result) -> str | None:
    """What something is that is no regular file, such as "a pipe"; None for a regular file."""
    return None if stat.S_ISREG(facts.st_mode) else _KINDS.get(stat.S_IFMT(facts.st_mode), "something else")


def facts_at(path: str | Path) -> Facts:
    """What the file system says of a file, or a store of an object. Raises OSError."""
    return facts_of(str(path)) if is_object(str(path)) else os.stat(path)


def facts_in(stream: BinaryIO) -> Facts:
    """What the file system says now of an opened file, or a store said of an object when it was opened.

    A file may be written to while it is open. What is read of an object is all of one version.
    """
    return stream.facts if isinstance(stream, ObjectFile) else os.fstat(stream.fileno())


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file, a link to one, or an object, to read its bytes. Raises OSError, also for anything else."""
    if is_object(str(path)):
        return cast(BinaryIO, ObjectFile(str(path)))
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    _require_regular(descriptor, path)
    return os.fdopen(descriptor, "rb")


def read_utf8(path: str | Path) -> str:
    """The text of a table that a person made, with any line ends and without the mark that a spreadsheet writes first.

    Raises OSError as `open_regular` does, also for a file that is too long, and UnicodeDecodeError.
    """
    with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig") as stream:
        text = stream.read(_LONGEST_TEXT + 1)
    if len(text) > _LONGEST_TEXT:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return text


def open_lock(path: str | Path) -> int:
    """The descriptor of a file that is locked and may be written to, made if there is none; nothing is cut off.

    Raises OSError, also for a link. A backup by hard links gives it a second name, which does no harm.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o666)  # less what the umask says
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _refusal("a link", path) from error
        raise
    _require_regular(descriptor, path)
    return descriptor


def _require_regular(descriptor: int, path: str | Path) -> None:
    """Close an opened file that is no regular one, and raise OSError."""
    kind = kind_of(os.fstat(descriptor))
    if kind is not None:
        os.close(descriptor)
        raise _refusal(kind, path)


def _refusal(kind: str, path: str | Path) -> OSError:
    return OSError(errno.EINVAL, f"it is {kind}, no regular file", str(path))

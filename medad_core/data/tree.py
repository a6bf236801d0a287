"""Files and folders below DATA, on a disk or in a bucket.

One decision: a disk is asked folder by folder, a bucket is listed once as a whole, a thousand objects a request. So ten
thousand cases cost some dozen requests, and what is said of a file afterwards costs none.
"""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from stat import S_IFDIR
from typing import Protocol

from medad_core.errors import StoreError, UsageError
from medad_core.store.files import explained
from medad_core.store.objects import ObjectFacts, hasty, is_object, list_tree
from medad_core.store.regular import Facts


class Entry(Protocol):
    """A file or folder in a folder, as `os.scandir` gives it."""

    @property
    def name(self) -> str:
        """The name in its folder."""

    @property
    def path(self) -> str:
        """The whole name."""

    def is_dir(self) -> bool:
        """Whether it is a folder, or a link to one."""

    def is_file(self) -> bool:
        """Whether it is a file, or a link to one."""

    def is_symlink(self) -> bool:
        """Whether it is a link."""


class Tree(Protocol):
    """What lies below a folder."""

    def entries(self, folder: str) -> Sequence[Entry]:
        """What lies directly in a folder. Raises OSError."""

    def facts(self, path: str) -> Facts:
        """What is said of a file or folder. Raises OSError."""


class DiskTree:
    """See `Tree`."""

    def entries(self, folder: str) -> Sequence[Entry]:
        """See `Tree.entries`."""
        return list(os.scandir(folder))

    def facts(self, path: str) -> Facts:
        """See `Tree.facts`."""
        return os.stat(path)


@dataclass(frozen=True)
class _ObjectEntry:
    name: str
    path: str
    is_folder: bool

    def is_dir(self) -> bool:
        return self.is_folder

    def is_file(self) -> bool:
        return not self.is_folder

    def is_symlink(self) -> bool:
        return False


class BucketTree:
    """See `Tree`. A bucket has no folders: one is where names of objects have a slash. There are no links."""

    def __init__(self, root: str) -> None:
        """List everything below `root`. Raises UsageError where it cannot be listed."""
        self._folders: dict[str, dict[str, _ObjectEntry]] = defaultdict(dict)
        self._facts: dict[str, ObjectFacts] = {}
        try:
            with hasty(), explained("list", root):
                for below, facts in list_tree(root):
                    self._take(root, below, facts)
        except StoreError as error:
            raise UsageError(str(error)) from error
        self._folders.setdefault(root, {})

    def _take(self, root: str, below: str, facts: ObjectFacts) -> None:
        *folders, name = below.split("/")
        place = root
        for folder in folders:
            path = f"{place}/{folder}"
            self._folders[place][folder] = _ObjectEntry(folder, path, is_folder=True)
            place = path
        self._folders[place][name] = _ObjectEntry(name, f"{place}/{name}", is_folder=False)
        self._facts[f"{place}/{name}"] = facts

    def entries(self, folder: str) -> Sequence[Entry]:
        """See `Tree.entries`."""
        return list(self._folders.get(folder, {}).values())

    def facts(self, path: str) -> Facts:
        """See `Tree.facts`. A folder is the same only as itself."""
        if path in self._folders:
            return ObjectFacts(0, 0, hash(path), "", st_mode=S_IFDIR)
        try:
            return self._facts[path]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None


def tree_of(root: str) -> Tree:
    """The tree below a folder, by its absolute name. Raises UsageError where a bucket cannot be listed."""
    return BucketTree(root) if is_object(root) else DiskTree()

"""Folders that medad writes: runs, cohorts, weights, reproductions. None of them holds cases of the user.

One decision: the first file in such a folder is a marker. Folders of earlier
versions do not have it, and are known by a file that only medad writes: its name and how it begins.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from medad_core.data.names import printable
from medad_core.errors import UsageError
from medad_core.store.files import join, local_path, make_folder, resolved, write_text
from medad_core.store.listing import list_names
from medad_core.store.objects import is_object
from medad_core.store.regular import open_regular

MARKER = ".medad"
NOTE = "medad writes its results into this folder. It is passed over when medad looks for cases.\n"
_HEAD = 1 << 16  # bytes of a file that are looked at
_TEXT = rb'"(?:[^"\\]|\\.)*"'
_SEAL = rb'(?:"seal"\s*:\s*"[0-9a-f]*"\s*,\s*)?'
_BEGINNINGS = {  # of files of medad, whatever their white space
    name: re.compile(rb"\s*\{\s*" + _SEAL + rb"\s*,\s*".join(fields))
    for name, fields in {
        "run.json": (rb'"settings"\s*:\s*' + _TEXT, rb'"data_root"\s*:'),
        "cohort.json": (rb'"root"\s*:\s*' + _TEXT, rb'"members"\s*:'),
        "study.json": (rb'"root"\s*:\s*' + _TEXT, rb'"fingerprint"\s*:'),
        "ledger.json": (rb'"inbox"\s*:\s*' + _TEXT, rb'"looked"\s*:'),
    }.items()
}
_WEIGHTS = {"card.json", "decoder.safetensors"}
_RESULTS = {"_work", "converter.safetensors", "converter_loss.csv", "card.md"} | _WEIGHTS  # of an unfinished training


def is_medad_folder(folder: str | Path, names: Collection[str] | None = None) -> bool:
    """Whether medad writes, or wrote, its results into `folder`. `names` are those of its files, where they are known.

    A folder that cannot be read counts as not medad's.
    """
    with suppress(OSError):
        if is_object(str(folder)):
            names = list_names(str(folder)) if names is None else names
            if MARKER in names:
                return True
        elif os.path.isfile(f"{folder}/{MARKER}"):  # faster than a Path, for a walk through 100,000 folders
            return True
        names = set(os.listdir(folder)) if names is None else names
        if _WEIGHTS.issubset(names):
            return True
        return any(_begins(f"{folder}/{name}", _BEGINNINGS[name]) for name in _BEGINNINGS.keys() & names)
    return False


def _begins(path: str, beginning: re.Pattern[bytes]) -> bool:
    with open_regular(path) as stream:
        return beginning.match(stream.read(_HEAD)) is not None


def check_name(path: str | Path) -> None:
    """Raise UsageError for a path that is not UTF-8: no record of a run could name it."""
    text = str(path)
    if text != printable(text):
        raise UsageError(f"{printable(text)}: the path is not valid UTF-8; rename what it names")


def claim_folder(data: str | Path, out: str) -> None:
    """Check that the results of the cases below `data` can go to the folder `out`.

    An `out` inside `data` is made and marked: call this before cases are looked for. Raises UsageError where `out` is
    `data` itself, or a folder inside it that holds something else: it would be passed over from now on, and its cases
    would be lost. Raises it too for a path that is not UTF-8.
    """
    root = resolved(str(data))
    check_name(root)
    check_name(out)
    if is_medad_folder(local_path(out) or out):
        return
    where = resolved(out)
    if where == root:
        raise UsageError(f"--out {out}: is the folder of the data itself; choose another, such as {out}-results")
    if where.startswith(f"{root.rstrip('/')}/"):
        if not _is_free(out):
            raise UsageError(f"--out {out}: lies inside the data and holds other files; choose a new folder")
        make_folder(out)
        mark_folder(out)


def mark_folder(out: str) -> None:
    """Mark the folder as one that medad writes, unless it holds something else. Raises StoreError."""
    if _is_free(out) and not is_medad_folder(local_path(out) or out):
        write_text(join(out, MARKER), NOTE)


def _is_free(out: str) -> bool:
    """Whether nothing but results of medad is in the folder, or it is not there."""
    folder = local_path(out)
    if folder is not None and not folder.is_dir():
        return not folder.exists()
    return all(name in _RESULTS or name.startswith(".") for name in list_names(out))

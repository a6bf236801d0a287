"""The worklist and the follow-up of a cohort, and what they were made of: `_lists.txt`.

One decision: the first line of `_lists.txt` is a hash of both as they were written, each further line one of the state
of what they were made of in a batch. While all of them hold, a night reads its own batch and what its patients had
before. If one does not, because a batch was evaluated again or a list was edited, both are made of all batches, with
the same rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib.metadata import version

from medad_core.inbox.records import Batch
from medad_core.inbox.worklist import WORKLIST, write_worklist
from medad_core.run.cohort import NAME as COHORT
from medad_core.store import join, sha256_file, write_text
from medad_core.store.files import read_bytes
from medad_core.store.listing import FileStamp, at_once, list_files

LISTS = "_lists.txt"
COMMIT = "_batch.json"
_WRITTEN = (WORKLIST, "followup.csv", "followup.parquet", "followup_lesions.parquet")
_MADE_OF = (WORKLIST, COHORT, "cases.parquet", "run.json", COMMIT)


def write_lists(folder: str, batches: Sequence[Batch], run_of: Callable[[int], str]) -> None:
    """Write worklist and follow-up into `folder`, unless they are there as they would be written. Raises StoreError.

    `batches` are oldest first; `run_of` returns the run of a batch by number.
    """
    if not batches:
        return
    listings = at_once(list_files, [run_of(batch.number) for batch in batches], folder)
    states = [_state(files) for files in listings]  # before anything is read: what changes meanwhile is seen next time
    noted = (read_bytes(join(folder, LISTS)) or b"").decode("utf-8", "replace").splitlines()
    known = noted[1:]
    if known != states[: len(known)] or noted[:1] != [_written(folder)]:
        known = []
    if known == states:
        return
    from medad_core.inbox.followup import write_followup  # model libraries take seconds

    # What an error hid may be there the next time; then everything is made again.
    is_whole = write_worklist(join(folder, WORKLIST), batches, len(known), run_of)
    is_whole = write_followup(folder, batches, len(known), run_of) and is_whole
    write_text(join(folder, LISTS), "\n".join([_written(folder), *states]) if is_whole else "")


def _state(files: dict[str, FileStamp]) -> str:
    states = [f"{name} {tuple(files[name])}" for name in _MADE_OF if name in files]
    return hashlib.sha256("\n".join(states).encode()).hexdigest()


def _written(folder: str) -> str:
    """A hash of the content of both lists, and of the version that wrote them."""
    there = list_files(folder)
    contents = [f"{name} {sha256_file(join(folder, name))}" for name in _WRITTEN if name in there]
    return hashlib.sha256("\n".join([version("medad"), *contents]).encode()).hexdigest()

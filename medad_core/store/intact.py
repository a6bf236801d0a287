"""Whether a part is the one that was recorded.

One decision: a part is hashed before it is used, and again only if it was written to since. So a bit that flipped on
the disk is noticed by whoever reads it, and a stage of 25,000 parts is hashed once a process. An object whose tag is
the recorded one is what was uploaded: a store checks that, and it would have to be fetched to be hashed.
"""

from __future__ import annotations

import time

from medad_core.store import files
from medad_core.store.listing import FileStamp
from medad_core.store.records import PartRecord, part_name

TICK_NS = 2 * 10**9  # a file written less than this before it was hashed may have changed since, with the same stamp


class IntactParts:
    """The parts in the folder `uri` whose sha256 was seen to be the recorded one. Safe for one thread at a time."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._seen: dict[int, tuple[str, FileStamp]] = {}  # recorded sha256, and the stamp of the file that had it

    def fault(self, number: int, record: PartRecord | None, stamp: FileStamp | None) -> str | None:
        """Why a part with this record, and a file of this stamp, does not count; None for a good one.

        Raises StoreError if it cannot be read.
        """
        if record is None:
            return "no record"
        if stamp is None:
            return "its file is missing"
        is_uploaded = record.tag != "" and stamp.identity == record.tag
        if stamp.size != record.bytes or not (is_uploaded or self._has_hash(number, record.sha256, stamp)):
            return "its file is not the one that was recorded"
        return None

    def _has_hash(self, number: int, sha256: str, stamp: FileStamp) -> bool:
        if self._seen.get(number) == (sha256, stamp) and stamp.identity:
            return True
        begun_ns = time.time_ns()
        if files.sha256_file(files.join(self.uri, part_name(number))) != sha256:
            return False
        if stamp.changed_ns < begun_ns - TICK_NS:
            self._seen[number] = (sha256, stamp)
        return True

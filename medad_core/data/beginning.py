"""The beginning of an object in a bucket, fetched as far as it is needed.

One decision: how far that is in a compressed file, is guessed from how well the whole of it was compressed, and fetched
at once; what is missing then follows in growing steps. So most volumes cost four requests: their length, the first
bytes, the last ones, the rest of the slices. What was fetched is what the run notes as read, also of a file that is
refused.
"""

from __future__ import annotations

from medad_core.data.inflate import GZIP, inflate
from medad_core.data.reads import FileRead, keep_beginning
from medad_core.errors import InputError
from medad_core.store.files import name_of
from medad_core.store.objects import ObjectFile, get

FIRST_BLOCK = 1 << 14  # bytes; holds a header, also compressed
_MARGIN = 1.1  # a volume's middle is compressed less well than its ends
_STEP = 1 << 18  # bytes


class Beginning:
    """The first bytes of the object `path`, which is opened. Raises OSError."""

    def __init__(self, case_id: str, path: str) -> None:
        self.case_id = case_id
        self.path = path
        self._stream = ObjectFile(path)
        self._raw = b""
        self._noted: FileRead | None = None
        self._fetch(FIRST_BLOCK)

    @property
    def size(self) -> int:
        """The length of the object in bytes."""
        return self._stream.facts.st_size

    @property
    def first(self) -> bytes:
        """Its first bytes."""
        return self._raw[:FIRST_BLOCK]

    def end(self, count: int) -> bytes:
        """The last `count` bytes of the object. Raises OSError."""
        return get(self.path, max(0, self.size - count), self.size, self._stream.facts.e_tag)

    def content(self, end: int, length: int) -> bytes:
        """The first `end` of `length` bytes of content, fewer where it ends before. Raises CaseError and InputError."""
        is_gzip = self._raw.startswith(GZIP)
        wanted = int(_MARGIN * end * self.size / length) + _STEP if is_gzip else end
        step = _STEP
        try:
            self._fetch(wanted)
            content = self._inflated(end)
            while len(content) < end and len(self._raw) < self.size:
                self._fetch(len(self._raw) + step)
                content = self._inflated(end)
                step *= 2
        except OSError as error:
            raise InputError(
                f"{self.case_id}: {name_of(self.path)}: the store failed ({error.strerror}); run the same command again"
            ) from error
        return content

    def _fetch(self, count: int) -> None:
        """Fetch no less than the first `count` bytes, and note it."""
        count = min(count, self.size)
        if count > len(self._raw):
            self._raw += self._stream.read(count - len(self._raw))
        self._noted = keep_beginning(self.path, self._stream.facts, self._raw, self._noted)

    def _inflated(self, end: int) -> bytes:
        return inflate(self._raw, end, self.case_id, name_of(self.path))

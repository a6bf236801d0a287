"""Inflating gzip content (ISA-L) as far as it is needed, or to its checksums.

One decision: several gzip members in a row are one content, as bgzip writes it. Each is given a growing part of the
bytes, so time is linear in their length, however many members there are. Errors name the case and the file.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from isal import igzip_lib

from medad_core.errors import CaseError, TruncatedError

GZIP = b"\x1f\x8b"  # how gzip content begins
EXPORT_AGAIN = "download or export the file again"
BLOCK = 1 << 22  # bytes held at a time
_FIRST_PART = 1 << 8  # bytes that a member is given first: what it leaves of them is copied
_GROWTH = 4


def inflate(raw: bytes, size: int, case_id: str, name: str) -> bytes:
    """The first `size` bytes of the content, fewer where it ends before; `raw` itself where it is not compressed.

    Raises CaseError for damaged gzip content.
    """
    if not raw.startswith(GZIP):
        return raw[:size]
    with _gzip_errors(case_id, name):
        # Most files are one member. Given all of it at once, ISA-L is fastest, and its output is not copied.
        first = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        content = first.decompress(raw, size)
        if len(content) == size or not first.eof:
            return content
        pieces = [content]
        have = len(content)
        with suppress(_CutOffError):
            for piece in _inflated([first.unused_data]):
                pieces.append(piece[: size - have])
                have += len(pieces[-1])
                if have == size:
                    break
    return b"".join(pieces)


def check_gzip(blocks: Iterable[bytes], limit: int, case_id: str, name: str) -> None:
    """Inflate gzip members, one after another, to their checksums. What is neither gzip nor needed may follow the last.

    Raises CaseError for damaged content and for more than `limit` bytes of it, TruncatedError where it ends too early.
    """
    have = 0
    try:
        with _gzip_errors(case_id, name):
            for piece in _inflated(blocks):
                have += len(piece)
                if have > limit:
                    raise CaseError(
                        case_id, f"{name}: more than {limit / 2**30:.3g} GiB of content (data.max_gib); {EXPORT_AGAIN}"
                    )
    except _CutOffError as error:
        raise TruncatedError(case_id, f"{name}: truncated within its gzip content; {EXPORT_AGAIN}") from error


class _CutOffError(Exception):
    """The bytes end within a member."""


def _inflated(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The content of the members in `blocks`, in pieces of at most BLOCK bytes. Raises _CutOffError at the end."""
    inflater = None
    part = _FIRST_PART
    rest = b""  # a half of a member's mark
    for block in blocks:
        view = memoryview(rest + block if rest else block)
        at = 0
        while at < len(view):
            if inflater is None:
                mark = view[at : at + len(GZIP)]
                if not GZIP.startswith(mark):
                    return
                if len(mark) < len(GZIP):
                    break
                inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
                part = _FIRST_PART
            given = view[at : at + part]
            yield inflater.decompress(given, BLOCK)
            while not (inflater.eof or inflater.needs_input):
                yield inflater.decompress(b"", BLOCK)
            at += len(given)
            part *= _GROWTH
            if inflater.eof:
                at -= len(inflater.unused_data)
                inflater = None
        rest = bytes(view[at:])
    if inflater is not None:
        raise _CutOffError


@contextmanager
def _gzip_errors(case_id: str, name: str) -> Iterator[None]:
    try:
        yield
    except (igzip_lib.IsalError, EOFError, zlib.error) as error:
        raise CaseError(case_id, f"{name}: damaged gzip content ({error}); {EXPORT_AGAIN}") from error

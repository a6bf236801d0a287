"""Inflating gzip content (ISA-L) as far as it is needed, or to its checksums.

One decision: several gzip members in a row are one content, as bgzip writes it. Errors name the case and the file.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from isal import igzip_lib

from medad_core.errors import CaseError, TruncatedError

GZIP = b"\x1f\x8b"  # how gzip content begins
EXPORT_AGAIN = "download or export the file again"
BLOCK = 1 << 22  # bytes held at a time


def inflate(raw: bytes, size: int, case_id: str, name: str) -> bytes:
    """The first `size` bytes of the content, fewer where it ends before; `raw` itself where it is not compressed.

    Raises CaseError for damaged gzip content.
    """
    if not raw.startswith(GZIP):
        return raw[:size]
    pieces: list[bytes] = []
    have = 0
    rest = raw
    with _gzip_errors(case_id, name):
        while have < size and rest.startswith(GZIP):
            inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
            pieces.append(inflater.decompress(rest, size - have))
            have += len(pieces[-1])
            if not inflater.eof:
                break
            rest = inflater.unused_data
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def check_gzip(blocks: Iterator[bytes], case_id: str, name: str) -> None:
    """Inflate gzip members, one after another, to their checksums. What is neither gzip nor needed may follow the last.

    Raises CaseError for damaged content, TruncatedError where it ends too early.
    """
    inflater = None
    rest = b""
    with _gzip_errors(case_id, name):
        for block in blocks:
            rest += block
            while rest.startswith(GZIP) if inflater is None else rest:
                if inflater is None:
                    inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
                inflater.decompress(rest, BLOCK)
                while not (inflater.eof or inflater.needs_input):
                    inflater.decompress(b"", BLOCK)
                if inflater.eof:
                    rest = inflater.unused_data
                    inflater = None
                else:
                    rest = b""
            if inflater is None and not GZIP.startswith(rest[:2]):
                return
    if inflater is not None:
        raise TruncatedError(case_id, f"{name}: truncated within its gzip content; {EXPORT_AGAIN}")


@contextmanager
def _gzip_errors(case_id: str, name: str) -> Iterator[None]:
    try:
        yield
    except (igzip_lib.IsalError, EOFError, zlib.error) as error:
        raise CaseError(case_id, f"{name}: damaged gzip content ({error}); {EXPORT_AGAIN}") from error

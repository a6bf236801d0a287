"""Reading the part of a NIfTI file that a slice range needs, in one fixed orientation.

One decision: a gzip stream is inflated only up to the last byte needed, and the voxels keep the file's own dtype.
Orientation is a transposed view, so a 240x240x155 volume costs one inflate and no copy. The header is read first, and
what it says bounds what is read after it: a file that claims more than `data.max_gib` is refused. A file of a disk is
read at once; of an object in a bucket only the beginning is fetched, as far as the slices need it.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from medad_core.data.beginning import FIRST_BLOCK, Beginning
from medad_core.data.cases import VolumeRef
from medad_core.data.inflate import BLOCK, EXPORT_AGAIN, GZIP, check_gzip, inflate
from medad_core.data.nifti_header import HEADER_BYTES, Header, parse_header
from medad_core.data.reads import Reading, keep_unreadable
from medad_core.errors import CaseError, InputError, TruncatedError
from medad_core.store.files import name_of
from medad_core.store.objects import is_object
from medad_core.store.regular import facts_in, open_regular

# Compressed content is hardly longer than the content itself. What is far longer is empty members, or padding.
_LONGEST_GZIP = 2  # times the content …
_LONGEST_EXTRA = 1 << 20  # … and bytes
_SHORTEST_GZIP = 18  # bytes
_GIB = 1 << 30
UNREADABLE = "cannot be read"  # in the reason of every file that is there, or was, and does not open
# Errors of a disk or network that may be gone in a moment, whatever the file.
_PASSING = {
    errno.EIO,
    errno.EAGAIN,
    errno.EINTR,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
}


@dataclass(frozen=True)
class NiftiFile:
    """An opened file: its compressed or plain bytes and its header. Errors are CaseError with the file's name.

    `raw` are the bytes of a file on a disk, `beginning` those of an object that were fetched so far.
    """

    case_id: str
    name: str
    raw: bytes
    header: Header
    channel: int
    beginning: Beginning | None = None

    def slices(self, first: int, last: int) -> np.ndarray:
        """Axial slices first..last (0-based from inferior, inclusive) as (last - first + 1, H, W), dtype as stored.

        Raises TruncatedError where the file ends before them.
        """
        header = self.header
        axial = header.order[0] == 2
        if not axial:  # slices lie scattered through the file: all of it is needed
            low = 0
            high = header.shape[2] - 1
        elif header.flips[0]:
            low = header.shape[2] - 1 - last
            high = header.shape[2] - 1 - first
        else:
            low = first
            high = last
        per_slice = header.shape[0] * header.shape[1]
        start = per_slice * (header.shape[2] * self.channel + low)
        voxels = self._voxels(start, per_slice * (high - low + 1))
        block = voxels.reshape((*header.shape[:2], high - low + 1), order="F").transpose(header.order)
        block = block[tuple(slice(None, None, -1 if flip else 1) for flip in header.flips)]
        return block if axial else block[first : last + 1]

    def _voxels(self, start: int, count: int) -> np.ndarray:
        size = self.header.dtype.itemsize
        end = self.header.offset + (start + count) * size
        if self.beginning is None:
            content = inflate(self.raw, end, self.case_id, self.name)
        else:
            content = self.beginning.content(end, self.header.file_bytes)
        if len(content) < end:
            raise TruncatedError(
                self.case_id, f"{self.name}: truncated ({len(content)} of {end} bytes needed); {EXPORT_AGAIN}"
            )
        voxels = np.frombuffer(content, self.header.dtype, count, self.header.offset + start * size)
        return voxels if self.header.dtype.isnative else voxels.astype(self.header.dtype.newbyteorder("="))


def open_nifti(case_id: str, ref: VolumeRef, max_gib: float) -> NiftiFile:
    """Read a file's bytes and header.

    Raises CaseError where it is unreadable, truncated, no NIfTI, not one 3-D volume, or longer than `max_gib`, and
    InputError where the filesystem failed in a way that may pass, or the file is still being written to.
    """
    name = name_of(ref.path)
    try:
        if is_object(ref.path):
            return _begin(case_id, ref, max_gib)
        raw, header = _read(ref.path, case_id, max_gib)
    except OSError as error:
        if error.errno in _PASSING:  # the case is not at fault: recorded as rejected it would be lost for good
            raise InputError(
                f"{case_id}: {name}: the filesystem failed ({error.strerror}); run the same command again"
            ) from error
        keep_unreadable(ref.path)
        raise CaseError(
            case_id, f"{name}: {UNREADABLE} ({error.strerror}); check the file and its permissions"
        ) from error
    channel = _pick_channel(header, ref, case_id, name)
    _require_whole_file(raw, header, case_id, name)
    return NiftiFile(case_id, name, raw, header, channel)


def _begin(case_id: str, ref: VolumeRef, max_gib: float) -> NiftiFile:
    """Open an object, of which no more is read than its first bytes and its last ones."""
    name = name_of(ref.path)
    beginning = Beginning(case_id, ref.path)
    header, is_gzip = _start(beginning.first, case_id, name, max_gib)
    _require_not_padded(beginning.size, header, is_gzip, case_id, name)
    channel = _pick_channel(header, ref, case_id, name)
    whole = header.file_bytes
    have = beginning.size
    if is_gzip:
        has_all = have >= _SHORTEST_GZIP and _says_length(beginning.end(4), whole)
        have = whole if has_all else len(beginning.content(whole, whole))
    _require_length(have, header, case_id, name)
    return NiftiFile(case_id, name, b"", header, channel, beginning)


def read_header(case_id: str, ref: VolumeRef, max_gib: float) -> Header:
    """The header of a file, of which no more than its first block is read. Raises CaseError."""
    name = name_of(ref.path)
    try:
        with open_regular(ref.path) as stream:
            header, _ = _start(stream.read(FIRST_BLOCK), case_id, name, max_gib)
    except OSError as error:
        raise CaseError(case_id, f"{name}: {UNREADABLE} ({error.strerror})") from error
    _pick_channel(header, ref, case_id, name)
    return header


def hash_whole(case_id: str, path: str | Path, max_gib: float) -> str:
    """SHA-256 (hex) of a file that is found to be whole.

    A gzip file is inflated to its checksum, which reading a slice range never comes to. A plain one must have the
    length that its header says. Memory holds a block of it, however long it is. Neither the file nor its content may
    be longer than `max_gib`.

    Raises TruncatedError where it ends too early, CaseError where it is damaged or no NIfTI file, OSError where it
    cannot be read.
    """
    digest = hashlib.sha256()
    name = name_of(str(path))
    with open_regular(path) as stream:
        size = facts_in(stream).st_size
        header, is_gzip = _start(stream.read(FIRST_BLOCK), case_id, name, max_gib)
        _require_at_most(size, "it has", max_gib, case_id, name)
        stream.seek(0)
        if is_gzip:
            check_gzip(_hashed(stream, digest), int(max_gib * _GIB), case_id, name)
        else:
            _require_length(size, header, case_id, name)
        for _ in _hashed(stream, digest):  # of a gzip file what follows its content
            pass
    return digest.hexdigest()


def _start(start: bytes, case_id: str, name: str, max_gib: float) -> tuple[Header, bool]:
    """The header in a file's first block, and whether it is compressed. Raises CaseError, also for what it claims."""
    is_gzip = start.startswith(GZIP)
    header = parse_header(inflate(start, HEADER_BYTES, case_id, name), case_id, name)
    _require_at_most(header.file_bytes, "its header speaks of", max_gib, case_id, name)
    return header, is_gzip


def _require_at_most(length: int, what: str, max_gib: float, case_id: str, name: str) -> None:
    if length > max_gib * _GIB:
        raise CaseError(
            case_id,
            f"{name}: {what} {length / _GIB:.3g} GiB, more than data.max_gib={max_gib:g}; {EXPORT_AGAIN}, or raise "
            "data.max_gib (a run that refused it already needs another --out)",
        )


def _hashed(stream: BinaryIO, digest: hashlib._Hash) -> Iterator[bytes]:
    while block := stream.read(BLOCK):
        digest.update(block)
        yield block


def _read(path: str, case_id: str, max_gib: float) -> tuple[bytes, Header]:
    """The bytes of a file and its header; of a plain file no more than its header speaks of, however long it is."""
    name = name_of(path)
    with open_regular(path) as stream, Reading(case_id, path, stream) as reading:
        start = reading.keep(stream.read(FIRST_BLOCK))
        header, is_gzip = _start(start, case_id, name, max_gib)
        size = facts_in(stream).st_size
        _require_not_padded(size, header, is_gzip, case_id, name)
        stream.seek(0)
        return reading.keep(stream.read(size if is_gzip else min(header.file_bytes, size))), header


def _require_not_padded(size: int, header: Header, is_gzip: bool, case_id: str, name: str) -> None:
    if is_gzip and size > _LONGEST_GZIP * header.file_bytes + _LONGEST_EXTRA:
        raise CaseError(
            case_id,
            f"{name}: {size:,} bytes long, compressed, for {header.file_bytes:,} bytes of content; {EXPORT_AGAIN}",
        )


def _pick_channel(header: Header, ref: VolumeRef, case_id: str, name: str) -> int:
    if ref.channel is None and header.channels == 1:
        return 0
    if ref.channel is None:
        shape = (*header.shape, header.channels)
        raise CaseError(
            case_id,
            f"{name}: wrong shape {shape}; give one 3-D volume a file, or the MSD layout (imagesTr) for 4-D files",
        )
    if ref.channel >= header.channels:
        raise CaseError(
            case_id,
            f"{name}: has {header.channels} channel(s), number {ref.channel} is wanted; "
            "check dataset.json, or the column channel of the table",
        )
    return ref.channel


def _require_whole_file(raw: bytes, header: Header, case_id: str, name: str) -> None:
    """Notice a truncated file although only its beginning is inflated: gzip ends with the content's length mod 2^32.

    Files of several gzip members (bgzip) end with another length, so a mismatch is decided by inflating everything.
    """
    whole = header.file_bytes
    have = len(raw)
    if raw.startswith(GZIP):
        if len(raw) >= _SHORTEST_GZIP and _says_length(raw[-4:], whole):
            return
        have = len(inflate(raw, whole, case_id, name))
    _require_length(have, header, case_id, name)


def _says_length(end: bytes, length: int) -> bool:
    """Whether the last four bytes of a gzip file are those of this length of its content."""
    return int.from_bytes(end, "little") == length % 2**32


def _require_length(have: int, header: Header, case_id: str, name: str) -> None:
    if have < header.file_bytes:
        raise TruncatedError(case_id, f"{name}: truncated ({have} of {header.file_bytes} bytes); {EXPORT_AGAIN}")

"""Reading the part of a NIfTI file that a slice range needs, in one fixed orientation.

One decision: a gzip stream is inflated (ISA-L) only up to the last byte needed, and the voxels keep the file's own dtype;
orientation is a transposed view, so a 240x240x155 volume costs one inflate and no copy.
Picture orientation is (S, P, L): slices inferior to superior, rows anterior to posterior, columns from the patient's right to
the left, which is the radiological convention. The NIfTI header follows https://nifti.nimh.nih.gov/nifti-1.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from isal import igzip_lib

from medad_core.data.cases import VolumeRef
from medad_core.errors import CaseError, InputError, TruncatedError

_GZIP = b"\x1f\x8b"
_HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
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
UNREADABLE = "cannot be read"  # in the reason of every file that is there, or was, and does not open
_CHUNK = 1 << 22
_LARGEST = 1 << 30  # voxels; a head at 0.25 mm has fewer. What a damaged header claims must not fill the memory
_AWAY = "download or export the file again"


@dataclass(frozen=True)
class Header:
    """What the file says of itself. `shape` is the stored (X, Y, Z); `order` and `flips` bring an array to (S, P, L)."""

    shape: tuple[int, int, int]
    channels: int
    dtype: np.dtype
    offset: int
    slope: float
    inter: float
    affine: np.ndarray
    has_orientation: bool
    stored_orientation: str
    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @property
    def file_bytes(self) -> int:
        """Length of a whole file before compression."""
        return self.offset + math.prod(self.shape) * self.channels * self.dtype.itemsize

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        return tuple(self.shape[axis] for axis in self.order)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """(row, column, slice) distances in mm."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        slices, rows, columns = (float(lengths[axis]) for axis in self.order)
        return rows, columns, slices

    @property
    def picture_affine(self) -> np.ndarray:
        """(4, 4): (slice, row, column, 1) of the picture to RAS+ mm."""
        columns, origin = [], self.affine[:3, 3].copy()
        for axis, flip in zip(self.order, self.flips, strict=True):
            step = self.affine[:3, axis]
            origin = origin + step * (self.shape[axis] - 1) if flip else origin
            columns.append(-step if flip else step)
        out = np.eye(4)
        out[:3, :3], out[:3, 3] = np.stack(columns, axis=1), origin
        return out


@dataclass(frozen=True)
class NiftiFile:
    """An opened file: its compressed or plain bytes and its header. Errors are CaseError with the file's name."""

    case_id: str
    name: str
    raw: bytes
    header: Header
    channel: int

    def slices(self, first: int, last: int) -> np.ndarray:
        """Voxels (last - first + 1, rows, columns) of canonical axial slices first..last (0-based, inclusive), dtype as stored."""
        header = self.header
        axis, count = header.order[0], header.picture_shape[0]
        low, high = (count - 1 - last, count - 1 - first) if header.flips[0] else (first, last)
        if axis != 2:  # slices lie scattered through the file: all of it is needed
            low, high = 0, header.shape[2] - 1
        per_slice = header.shape[0] * header.shape[1]
        start = per_slice * (header.shape[2] * self.channel + low)
        voxels = self._voxels(start, per_slice * (high - low + 1))
        block = voxels.reshape((*header.shape[:2], high - low + 1), order="F").transpose(header.order)
        block = block[tuple(slice(None, None, -1 if flip else 1) for flip in header.flips)]
        return block if axis == 2 else block[first : last + 1]

    def _voxels(self, start: int, count: int) -> np.ndarray:
        size = self.header.dtype.itemsize
        end = self.header.offset + (start + count) * size
        content = _inflate(self.raw, end, self.case_id, self.name)
        if len(content) < end:
            raise TruncatedError(
                self.case_id, f"{self.name}: truncated ({len(content)} of {end} bytes needed); {_AWAY}"
            )
        voxels = np.frombuffer(content, self.header.dtype, count, self.header.offset + start * size)
        return voxels if self.header.dtype.isnative else voxels.astype(self.header.dtype.newbyteorder("="))


def open_nifti(case_id: str, ref: VolumeRef) -> NiftiFile:
    """Read a file's bytes and header. Raises CaseError where it is unreadable, truncated, no NIfTI, or not one 3-D volume,
    and InputError where the filesystem failed in a way that may pass."""
    name = Path(ref.path).name
    try:
        raw, header = _read(Path(ref.path), case_id)
    except OSError as error:
        if error.errno in _PASSING:  # the case is not at fault: recorded as rejected it would be lost for good
            raise InputError(
                f"{case_id}: {name}: the filesystem failed ({error.strerror}); run the same command again"
            ) from error
        raise CaseError(
            case_id, f"{name}: {UNREADABLE} ({error.strerror}); check the file and its permissions"
        ) from error
    channel = _pick_channel(header, ref, case_id, name)
    _require_whole_file(raw, header, case_id, name)
    return NiftiFile(case_id, name, raw, header, channel)


def hash_whole(case_id: str, path: Path) -> str:
    """SHA-256 (hex) of a file that is held against its own end: a gzip file is inflated to its checksum, which reading a slice range never comes to; a plain one must have
    the length of its header. Memory holds a block of it, however long it is.

    Raises TruncatedError where it ends too early, CaseError where it is damaged or no NIfTI file, OSError where it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        start = stream.read(_HEADER_BYTES)
        if start.startswith(_GZIP):
            stream.seek(0)
            _inflate_blocks(_hashed(stream, digest), case_id, path.name)
        else:
            _require_length(
                os.fstat(stream.fileno()).st_size, _parse_header(start, case_id, path.name), case_id, path.name
            )
            stream.seek(0)
        for _ in _hashed(stream, digest):  # of a gzip file what follows its content
            pass
    return digest.hexdigest()


def _hashed(stream: BinaryIO, digest: hashlib._Hash) -> Iterator[bytes]:
    while block := stream.read(_CHUNK):
        digest.update(block)
        yield block


def _inflate_blocks(blocks: Iterator[bytes], case_id: str, name: str) -> None:
    """Inflate gzip members, one after another, to their checksums. What is neither gzip nor needed may follow the last."""
    inflater, rest = None, b""
    with _gzip_errors(case_id, name):
        for block in blocks:
            rest += block
            while rest.startswith(_GZIP) if inflater is None else rest:
                inflater = inflater or igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
                inflater.decompress(rest, _CHUNK)
                while not (inflater.eof or inflater.needs_input):
                    inflater.decompress(b"", _CHUNK)
                inflater, rest = (None, inflater.unused_data) if inflater.eof else (inflater, b"")
            if inflater is None and not _GZIP.startswith(rest[:2]):
                return
    if inflater is not None:
        raise TruncatedError(case_id, f"{name}: truncated within its gzip content; {_AWAY}")


@contextmanager
def _gzip_errors(case_id: str, name: str) -> Iterator[None]:
    try:
        yield
    except (igzip_lib.IsalError, EOFError, zlib.error) as error:
        raise CaseError(case_id, f"{name}: damaged gzip content ({error}); {_AWAY}") from error


def _read(path: Path, case_id: str) -> tuple[bytes, Header]:
    """The bytes of a file and its header; of a plain file no more than its header speaks of, however long it is."""
    with path.open("rb") as stream:
        start = stream.read(_HEADER_BYTES)
        stream.seek(0)
        if start.startswith(_GZIP):
            raw = stream.read()
            return raw, _parse_header(_inflate(raw, _HEADER_BYTES, case_id, path.name), case_id, path.name)
        header = _parse_header(start, case_id, path.name)
        return stream.read(min(header.file_bytes, os.fstat(stream.fileno()).st_size)), header


def _inflate(raw: bytes, size: int, case_id: str, name: str) -> bytes:
    """The first `size` bytes of the content, fewer where it ends before. Several gzip members in a row are one content."""
    if not raw.startswith(_GZIP):
        return raw[:size]
    pieces, have, rest = [], 0, raw
    with _gzip_errors(case_id, name):
        while have < size and rest.startswith(_GZIP):
            inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
            pieces.append(inflater.decompress(rest, size - have))
            have += len(pieces[-1])
            if not inflater.eof:
                break
            rest = inflater.unused_data
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _parse_header(content: bytes, case_id: str, name: str) -> Header:
    if len(content) < nib.Nifti1Header.sizeof_hdr:
        raise TruncatedError(case_id, f"{name}: truncated within its header ({len(content)} bytes); {_AWAY}")
    kind = nib.Nifti2Header if content[:4] in (struct.pack("<i", 540), struct.pack(">i", 540)) else nib.Nifti1Header
    try:
        header = kind(content[: kind.sizeof_hdr], check=False)  # extensions stay unread: only their length matters
        stored = header.get_data_shape()
        dtype = header.get_data_dtype()
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
        offset = max(int(header["vox_offset"]), header.sizeof_hdr + 4)
        if offset > _LARGEST:
            raise ValueError(f"its voxels begin at byte {offset}")
    except Exception as error:  # nibabel raises many kinds on bytes that are no header; each means the same here
        raise CaseError(case_id, f"{name}: not a NIfTI file ({error}); give .nii or .nii.gz") from error
    if header["magic"].item()[:3] not in (b"n+1", b"n+2"):
        raise CaseError(case_id, f"{name}: not a NIfTI file (no n+1 mark in its header); give .nii or .nii.gz")
    if dtype.fields is not None or dtype.kind not in "iuf":
        raise CaseError(case_id, f"{name}: voxels of type {dtype}; give whole or real numbers")
    if len(stored) not in (3, 4) or min(stored) < 1 or math.prod(map(int, stored)) > _LARGEST:
        raise CaseError(case_id, f"{name}: wrong shape {tuple(stored)}; give one 3-D volume")
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0:
        slope, inter = 1.0, 0.0  # the standard: a slope of 0 means unscaled
    order, flips, codes = _orientation(affine, case_id, name)
    return Header(
        shape=tuple(int(n) for n in stored[:3]),
        channels=int(stored[3]) if len(stored) == 4 else 1,
        dtype=dtype,
        offset=offset,
        slope=slope,
        inter=inter if np.isfinite(inter) else 0.0,
        affine=affine,
        has_orientation=bool(header["qform_code"] > 0 or header["sform_code"] > 0),
        stored_orientation=codes,
        order=order,
        flips=flips,
    )


def _orientation(affine: np.ndarray, case_id: str, name: str) -> tuple[tuple, tuple, str]:
    """Axes and flips that turn a stored array into (S, P, L), and the stored axes' codes such as "LPS"."""
    found = nib.io_orientation(affine) if np.isfinite(affine).all() else np.full((3, 2), np.nan)
    if not np.isfinite(found).all():
        raise CaseError(
            case_id, f"{name}: its affine does not give an orientation; export it again with a valid header"
        )
    axis_of = {int(world): stored for stored, (world, _) in enumerate(found)}
    sign_of = {int(world): sign for world, sign in found}
    order = (axis_of[2], axis_of[1], axis_of[0])
    flips = (sign_of[2] < 0, sign_of[1] > 0, sign_of[0] > 0)
    return order, flips, "".join(nib.orientations.ornt2axcodes(found))


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
            case_id, f"{name}: has {header.channels} channel(s), number {ref.channel} is wanted; check dataset.json"
        )
    return ref.channel


def _require_whole_file(raw: bytes, header: Header, case_id: str, name: str) -> None:
    """Notice a truncated file although only its beginning is inflated: gzip ends with the content's length mod 2^32.

    Files of several gzip members (bgzip) end with another length, so a mismatch is decided by inflating everything.
    """
    whole, have = header.file_bytes, len(raw)
    if raw.startswith(_GZIP):
        if len(raw) >= 18 and int.from_bytes(raw[-4:], "little") == whole % 2**32:
            return
        have = len(_inflate(raw, whole, case_id, name))
    _require_length(have, header, case_id, name)


def _require_length(have: int, header: Header, case_id: str, name: str) -> None:
    if have < header.file_bytes:
        raise TruncatedError(case_id, f"{name}: truncated ({have} of {header.file_bytes} bytes); {_AWAY}")

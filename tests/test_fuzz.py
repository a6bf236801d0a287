"""Files and folders that nobody would make: only medad's own errors, and nibabel's voxels where both read a file.

One decision: the same examples every time, few of them, so that a failure here is a failure everywhere. `make fuzz`
looks at many others, each time anew.
"""

from __future__ import annotations

import gzip
import os
import socket
import tempfile
import warnings

import msgspec
import nibabel as nib
import numpy as np
import pytest
from hostile import volume
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medad_core.config import DataSettings
from medad_core.data.discovery import discover
from medad_core.data.identity import identity
from medad_core.data.inflate import check_gzip, inflate
from medad_core.errors import CaseError, MedadError
from medad_core.run.gather import make_cohort

EXAMPLES = int(os.environ.get("MEDAD_FUZZ", "0"))
fuzz = settings(
    max_examples=EXAMPLES or 120,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

# Values at the ends of what a header's field holds, and beyond what it means.
ODD_NUMBERS = st.sampled_from([0, 1, -1, 2, 7, 255, -32768, 32767, 0.5, 1e9, -1e30, 1e30, np.inf, np.nan])
FIELDS = st.sampled_from(sorted(set(nib.Nifti1Header()) & set(nib.Nifti2Header())))
TYPES = st.sampled_from(["u1", "i1", "<i2", ">i2", "<f4", ">f4", "<f8", "<i8", "<u8", "<c8", "<u4"])


def _number(data: st.DataObject, dtype: np.dtype) -> object:
    value = data.draw(ODD_NUMBERS)
    if dtype.kind == "f":
        return value
    limits = np.iinfo(dtype) if dtype.kind in "iu" else None
    return min(max(int(np.nan_to_num(value)), limits.min), limits.max) if limits else b"\xff"


def _content(data: st.DataObject) -> bytes:
    """A small volume whose header says odd things, or whose bytes are others, or fewer."""
    dtype = np.dtype(data.draw(TYPES))
    shape = data.draw(st.sampled_from([(5, 4, 3), (5, 4, 3, 1), (5, 4, 3, 2), (1, 4, 3), (5, 4)]))
    voxels = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    axes = data.draw(st.permutations(range(3)))
    affine = np.eye(4)[[*axes, 3]] * [*data.draw(st.tuples(*[st.sampled_from([1.0, -1.0])] * 3)), 1]
    kind = data.draw(st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]))
    header = kind.header_class(endianness=data.draw(st.sampled_from("<>")))
    image = kind(voxels, affine, header, dtype=dtype)
    raw = bytearray(image.to_bytes())
    size = kind.header_class.sizeof_hdr
    structure = np.frombuffer(raw, image.header.structarr.dtype, 1).copy()
    for name in data.draw(st.lists(FIELDS, max_size=3)):
        field = structure[name]
        place = data.draw(st.integers(0, max(0, field.size - 1)))
        field.reshape(-1)[place] = _number(data, field.dtype)
    raw[:size] = structure.tobytes()
    for place in data.draw(st.lists(st.integers(0, size + 4), max_size=2)):
        raw[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))
    return bytes(raw[:end])


@pytest.fixture(autouse=True)
def quiet():
    """Keeps nibabel from saying what it thinks of these headers."""
    nib.imageglobals.logger.disabled = True
    yield
    nib.imageglobals.logger.disabled = False


@fuzz
@given(st.data())
def test_a_header_that_lies_is_refused_or_read_as_nibabel_reads_it(data):
    content = _content(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        volume(data.draw(st.sampled_from([bytes, gzip.compress]))(content))


@fuzz
@given(
    st.lists(st.tuples(st.binary(max_size=300), st.integers(1, 400), st.integers(0, 9)), min_size=1, max_size=6),
    st.binary(max_size=3),
    st.integers(0, 5000),
    st.integers(1, 700),
    st.one_of(st.none(), st.tuples(st.integers(0, 1 << 20), st.integers(1, 255))),
)
def test_gzip_members_are_inflated_as_zlib_does_or_refused(members, tail, wanted, block, damage):
    parts = [(content * times, level) for content, times, level in members]
    content = b"".join(part for part, _ in parts)
    raw = b"".join(gzip.compress(part, level, mtime=0) for part, level in parts)
    whole = raw + b"\0" + tail
    if damage is None:
        assert inflate(whole, wanted, "case", "x") == content[:wanted]
    else:
        place = damage[0] % len(raw)
        whole = raw[:place] + bytes([raw[place] ^ damage[1]]) + raw[place + 1 :]
    blocks = [whole[start : start + block] for start in range(0, len(whole), block)]
    try:
        if len(inflate(whole, wanted, "case", "x")) > wanted:
            raise AssertionError("more than was wanted")
        check_gzip(blocks, 1 << 20, "case", "x")
    except CaseError:
        assert damage is not None


NAMES = st.sampled_from(
    [
        *(b"A", b"B", b"caf\xe9", b"imagesTr", b"labelsTr", b"sub-1", b"anat", b".git", b"a\nb", b"A_flair.nii.gz"),
        *(b"A_seg.nii.gz", b"B_flair.nii", b"flair.nii.gz", b"\xff_flair.nii.gz", b"A_0000.nii.gz", b"dataset.json"),
        *(b"sub-1_FLAIR.nii.gz", b"run.json", b"BraTS2021_00001_flair.nii.gz", b"IM0001", b"notes.txt", b"x.mgz"),
    ]
)
KINDS = st.sampled_from(
    ["file", "file", "file", "folder", "folder", "link", "hard link", "pipe", "socket", "device", "json"]
)
STEPS = st.lists(st.tuples(KINDS, st.lists(NAMES, min_size=1, max_size=4), st.integers(0, 30)), max_size=14)


def _grow(root: bytes, steps: list[tuple[str, list[bytes], int]]) -> None:
    """A tree of every kind of entry; what cannot be made is left out."""
    made = [root]
    for kind, names, number in steps:
        path = os.path.join(root, *names)
        other = made[number % len(made)]
        try:
            os.makedirs(path if kind == "folder" else os.path.dirname(path), exist_ok=True)
            if kind == "link":
                os.symlink(other, path)
            elif kind == "hard link":
                os.link(other, path)
            elif kind == "pipe":
                os.mkfifo(path)
            elif kind == "socket":
                with socket.socket(socket.AF_UNIX) as server:
                    server.bind(path)
            elif kind == "device":
                os.symlink(b"/dev/zero", path)
            elif kind != "folder":
                with open(path, "xb") as stream:
                    stream.write(b'{"channel_names": {"0": "FLAIR"}}' if kind == "json" else b"")
            made.append(path)
        except OSError:
            continue


@fuzz
@given(STEPS, st.booleans())
def test_any_tree_gives_cases_that_can_be_written_and_no_volume_twice(steps, in_inbox):
    with tempfile.TemporaryDirectory() as folder:
        _grow(os.fsencode(folder), steps)
        try:
            discovery = discover(folder, may_be_empty=in_inbox)
        except MedadError as error:
            assert "\n" not in str(error).replace("a\nb", "") and not in_inbox
            return
        cohort = make_cohort(str(folder), discovery, DataSettings())
        assert type(cohort).from_json(cohort.to_json()) == cohort
        msgspec.json.encode([item.reason for item in discovery.passed_over])
        volumes = [identity(os.stat(case.volumes["flair"].path)) for case in discovery.cases]
        assert len(set(volumes)) == len(volumes)
        assert len({case.case_id for case in discovery.cases}) == len(discovery.cases)

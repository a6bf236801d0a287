"""What every reader of bytes promises, as functions of bytes that raise where it is broken; and files to begin with.

One decision: a promise is stated once. Hypothesis tries it with changed files in every test run, and libFuzzer
(`fuzz_bytes.py`) with a million inputs that it chooses by the lines of medad they reach.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import nibabel as nib
import numpy as np

from medad_core.config import load_settings, settings_to_yaml
from medad_core.config.settings import Settings
from medad_core.data.cases import VolumeRef
from medad_core.data.inflate import check_gzip, inflate
from medad_core.data.nifti import hash_whole, open_nifti, read_header
from medad_core.data.patients import _read as read_patients
from medad_core.data.table import read_case_table
from medad_core.errors import CaseError, ConfigError, MedadError, StoreError, UsageError, WeightsError
from medad_core.inbox.records import Batch, BatchPlan, Ledger, PlannedStudy, Stamp, StoredFile, Study
from medad_core.models.loading import open_tensors
from medad_core.models.weights import load_converter, load_decoder, supervision_of, trained_on, weights_folder
from medad_core.run.cohort import Cohort
from medad_core.run.info import RunInfo
from medad_core.store import PartRecord, Plan, StageManifest, read_table
from medad_core.store.records import Record

EARLIER = Path(__file__).parent / "versions" / "0.1.0"
MAX_GIB = 1 / 1024
# In memory where there is such a folder: a million files on a disk take hours.
PLACE = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

TABLE = (
    b"case_id,patient,visit,modality,role,path,channel,tumour_labels,reason\n"
    b"A,P,1,flair,volume,A/a.nii.gz,,,\nA,P,1,,tumour mask,A/seg.nii.gz,,1 2 4,\n"
    b"'=B,Q,,flair,volume,B.nii.gz,0,,odd\nC,Q,,t1,refused,C.nii.gz,,,\n,,,,passed over,D.txt,,,\n"
)


@cache
def records() -> dict[str, tuple[type[Record], bytes]]:
    """One sealed record of each kind, and its bytes."""
    run = EARLIER / "run"
    read = {
        Cohort: run / "cohort.json",
        RunInfo: run / "run.json",
        Plan: run / "maps" / "_plan.json",
        PartRecord: next((run / "maps" / "_parts").glob("*.json")),
        StageManifest: run / "maps" / "_manifest.json",
        Ledger: EARLIER / "cohort" / "ledger.json",
        Batch: next((EARLIER / "cohort").rglob("_batch.json")),
    }
    made = {kind.__name__: (kind, kind.from_json(path.read_bytes()).to_json()) for kind, path in read.items()}
    file = StoredFile(
        path="A/a.nii", channel=None, stamp=Stamp(size=1, mtime_ns=2, ctime_ns=3, inode=4), sha256="0" * 64
    )
    study = Study(case_id="A", volume=file, mask=None, patient="A")
    planned = PlannedStudy(study=study, revision=1, attempt=1)
    plan = BatchPlan(number=1, opened="2026-01-01T00:00:00+00:00", fingerprint={"a": "b"}, studies=(planned,))
    return made | {"BatchPlan": (BatchPlan, plan.to_json())}


RECORDS = ("Cohort", "RunInfo", "Plan", "PartRecord", "StageManifest", "Ledger", "Batch", "BatchPlan")


def sealed_record(kind: str, content: bytes) -> None:
    """It is refused, or says what it said."""
    record, whole = records()[kind]
    try:
        found = record.from_json(content)
    except ValueError:
        return
    assert found == record.from_json(whole)


def unsealed_record(kind: str, content: bytes) -> None:
    """As of an earlier version: it is refused, or written and read again without a change."""
    record, _ = records()[kind]
    with suppress(ValueError):
        found = record.from_json(content)
        assert record.from_json(found.to_json()) == found


def settings_file(content: bytes) -> None:
    """It is settings that can be written and read again, or refused in one line."""
    with _file("settings.yaml", content) as path:
        try:
            found = load_settings(path)
        except ConfigError as error:
            assert "\n" not in str(error)
            return
        path.write_text(settings_to_yaml(found), encoding="utf-8")
        assert load_settings(path) == found


def settings_word(content: bytes) -> None:
    """A word of the command line is a setting, or refused in one line."""
    word = content.decode("utf-8", "surrogateescape")
    try:
        load_settings(None, [word])
    except ConfigError as error:
        assert "\n" not in str(error)


def table_of_cases(name: str, content: bytes) -> None:
    """A table of files or patients is read, or refused with its name."""
    with _file(name, content) as path:
        for read in (lambda: read_case_table(path, "flair"), lambda: read_patients(path)):
            try:
                read()
            except UsageError as error:
                assert str(error).startswith((str(path), f"data.patients={path}"))


def card(content: bytes) -> None:
    """It is read, or refused in one line."""
    with _file("card.json", content) as path:
        for read in (trained_on, supervision_of):
            try:
                read(path.parent)
            except WeightsError as error:
                assert "\n" not in str(error)


def weights_file(name: str, content: bytes) -> None:
    """Decoder or converter are loaded, or refused in one line."""
    load = {"decoder": load_decoder, "converter": load_converter}[name]
    with _file(f"{name}.safetensors", content) as path:
        try:
            load(path.parent, _fits(name))
        except WeightsError as error:
            assert "\n" not in str(error)


def weights_bytes(name: str) -> bytes:
    """The project's own decoder or converter."""
    return (weights_folder("embedded") / f"{name}.safetensors").read_bytes()


@cache
def _fits(name: str) -> dict[str, str]:
    with open_tensors(weights_folder("embedded") / f"{name}.safetensors") as tensors:
        return json.loads(tensors.metadata()["fits"])


def rows_file(content: bytes) -> None:
    """A Parquet file is read, or refused in one line."""
    with _file("predictions.parquet", content) as path:
        try:
            read_table(str(path))
        except StoreError as error:
            assert "\n" not in str(error)


def gzip_stream(content: bytes, wanted: int = 1 << 16) -> None:
    """It is inflated as zlib inflates it, or refused; never more than was wanted."""
    theirs, whole = _inflated_by_zlib(content)
    try:
        ours = inflate(content, wanted, "case", "x")
    except CaseError:
        assert not whole
        return
    finally:
        with suppress(MedadError):
            check_gzip([content[:7], content[7:]], 1 << 20, "case", "x")
    assert len(ours) <= wanted
    if whole:
        assert ours == theirs[:wanted]
    else:
        common = min(len(ours), len(theirs))
        assert ours[:common] == theirs[:common]


def _inflated_by_zlib(content: bytes) -> tuple[bytes, bool]:
    """What zlib makes of gzip members (or of anything else: itself), and whether they are whole."""
    if not content.startswith(b"\x1f\x8b"):
        return content, True
    have = b""
    while content.startswith(b"\x1f\x8b"):
        member = zlib.decompressobj(31)
        try:
            have += member.decompress(content, 1 << 20)
        except zlib.error:
            return have, False
        if not member.eof:
            return have, False
        content = member.unused_data
    return have, True


def volume(content: bytes) -> None:
    """A NIfTI file is refused with its name, or has the voxels that nibabel reads."""
    with _file("x.nii.gz", content) as path:
        ref = VolumeRef(str(path))
        try:
            file = open_nifti("case", ref, MAX_GIB)
            slices = file.slices(0, file.header.picture_shape[0] - 1)
        except CaseError as error:
            assert error.reason.startswith("x.nii.gz: ") and "\n" not in error.reason
            return
        assert read_header("case", ref, MAX_GIB).file_bytes == file.header.file_bytes
        with suppress(CaseError):  # it reads on to the end, and finds damage that no voxel of the range has
            hash_whole("case", path, MAX_GIB)
    theirs = nibabel_voxels(_inflated_by_zlib(content)[0])
    if theirs is not None:
        theirs = theirs.reshape(file.header.shape).transpose(file.header.order)
        theirs = theirs[tuple(slice(None, None, -1 if flip else 1) for flip in file.header.flips)]
        np.testing.assert_array_equal(slices, theirs)


def nibabel_voxels(content: bytes) -> np.ndarray | None:
    """What nibabel reads of a NIfTI file that is not compressed; None where it reads nothing, or no voxels."""
    try:
        is_nifti2 = content[:4] in ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))
        kind = nib.Nifti2Image if is_nifti2 else nib.Nifti1Image
        proxy = kind.from_bytes(content).dataobj
        if proxy.offset < kind.header_class.sizeof_hdr + 4:  # it takes bytes of the header for voxels
            return None
        return np.asanyarray(proxy.get_unscaled())
    except Exception:  # whatever nibabel raises on hostile bytes: it has no voxels to compare then
        return None


def volumes() -> list[bytes]:
    """Small volumes of several types and orders, plain and compressed."""
    made = []
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        for dtype, order in (("u1", "<"), ("i2", ">"), ("f4", "<")):
            header = kind.header_class(endianness=order)
            voxels = np.arange(60).reshape(5, 4, 3).astype(dtype)
            made.append(kind(voxels, np.diag([-1.0, -1.0, 1.0, 1.0]), header, dtype=voxels.dtype).to_bytes())
    return [*made, *map(gzip.compress, made)]


class _file:
    """A file of this name and content in a folder of its own, gone afterwards."""

    def __init__(self, name: str, content: bytes) -> None:
        self.folder = tempfile.TemporaryDirectory(dir=PLACE)
        self.path = Path(self.folder.name) / name
        self.path.write_bytes(content)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()


# Readers by name: the promise, and the files to begin with.
PROMISES: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "volume": (volume, volumes),
    "gzip": (gzip_stream, lambda: [gzip.compress(b"a" * 40), gzip.compress(b"a") + gzip.compress(os.urandom(99))]),
    "settings": (settings_file, lambda: [settings_to_yaml(Settings()).encode()]),
    "word": (settings_word, lambda: [b"data.first_slice=70", b"llm.questions=[a]", b"data.tumour_labels=[1, 2]"]),
    "csv": (partial(table_of_cases, "cases.csv"), lambda: [TABLE, b"case_id,patient\nA,P\n"]),
    "tsv": (partial(table_of_cases, "cases.tsv"), lambda: [TABLE.replace(b",", b"\t")]),
    "card": (card, lambda: [(weights_folder("embedded") / "card.json").read_bytes()]),
    "rows": (rows_file, lambda: [(EARLIER / "run" / "predictions.parquet").read_bytes()]),
    "decoder": (partial(weights_file, "decoder"), lambda: [weights_bytes("decoder")]),
    "converter": (partial(weights_file, "converter"), lambda: [weights_bytes("converter")]),
}
for _kind in RECORDS:
    PROMISES[f"record-{_kind}"] = (
        partial(unsealed_record, _kind),
        lambda kind=_kind: [records()[kind][1], records()[kind][0].from_json(records()[kind][1]).body()],
    )

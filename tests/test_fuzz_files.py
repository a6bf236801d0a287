"""Files of medad and of its users, changed at random: one of medad's errors, or what was in the file before.

As in `test_fuzz.py`, the examples are the same every time, and others in `make fuzz`.
"""

from __future__ import annotations

import json
import os
import tempfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from medad_core.config import load_settings, settings_to_yaml
from medad_core.config.settings import Settings
from medad_core.data.patients import _read as read_patients
from medad_core.data.table import read_case_table
from medad_core.errors import ConfigError, StoreError, UsageError, WeightsError
from medad_core.inbox.records import Batch, BatchPlan, Ledger, PlannedStudy, Stamp, StoredFile, Study
from medad_core.models.loading import open_tensors
from medad_core.models.weights import load_converter, load_decoder, trained_on, weights_folder
from medad_core.run.cohort import Cohort
from medad_core.run.info import RunInfo
from medad_core.store import PartRecord, Plan, StageManifest, read_table
from medad_core.store.records import Record

EXAMPLES = int(os.environ.get("MEDAD_FUZZ", "0"))
EARLIER = Path(__file__).parent / "versions" / "0.1.0"
# Pieces that are likely to mean something in JSON, YAML or CSV.
PIECES = [
    b"",
    b"0",
    b"1e999",
    b"-1",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'"',
    b"'",
    b"\\",
    b",",
    b"\n",
    b"\r",
    b"\0",
    b"\xff",
]
PIECES += [
    b"=1+1",
    b"*a",
    b"&a",
    b"!!python/object:os.system",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"9" * 400,
    b"[" * 2000,
]


def fuzz(share: float = 1.0):
    """How many examples a test gets: few of what takes long."""
    return settings(
        max_examples=max(1, int((EXAMPLES or 120) * share)),
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def changes(draw) -> list[tuple[float, int, bytes]]:
    """Places (as shares of the length), how many bytes go there, and what comes in their place."""
    piece = st.one_of(st.sampled_from(PIECES), st.binary(min_size=1, max_size=1))
    return draw(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), piece), min_size=1, max_size=3))


def changed(content: bytes, steps: list[tuple[float, int, bytes]]) -> bytes:
    for place, length, piece in steps:
        start = int(place * len(content))
        content = content[:start] + piece + content[start + length :]
    return content


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


@pytest.mark.parametrize(
    "kind", ["Cohort", "RunInfo", "Plan", "PartRecord", "StageManifest", "Ledger", "Batch", "BatchPlan"]
)
def test_a_changed_record_is_refused_or_says_the_same(kind):
    record, content = records()[kind]
    whole = record.from_json(content)

    @fuzz()
    @given(changes())
    def check(steps):
        try:
            found = record.from_json(changed(content, steps))
        except ValueError:
            return
        assert found == whole

    check()


@fuzz(0.3)
@given(changes())
@example([(0.0, 0, b"[" * 5000)])
def test_changed_settings_are_settings_or_refused_in_one_line(steps):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.yaml"
        path.write_bytes(changed(settings_to_yaml(Settings()).encode(), steps))
        try:
            load_settings(path)
        except ConfigError as error:
            assert "\n" not in str(error)


@fuzz()
@given(st.sampled_from(["data", "data.first_slice", "llm.model", "models.batch_size", "x"]), changes())
def test_any_word_is_a_setting_or_refused_in_one_line(key, steps):
    word = changed(f"{key}=70".encode(), steps).decode("utf-8", "surrogateescape")
    try:
        load_settings(None, [word])
    except ConfigError as error:
        assert "\n" not in str(error).replace(word, "")


TABLE = (
    b"case_id,patient,visit,modality,role,path,channel,tumour_labels,reason\n"
    b"A,P,1,flair,volume,A/a.nii.gz,,,\nA,P,1,,tumour mask,A/seg.nii.gz,,1 2 4,\n"
    b"'=B,Q,,flair,volume,B.nii.gz,0,,odd\nC,Q,,t1,refused,C.nii.gz,,,\n,,,,passed over,D.txt,,,\n"
)


@fuzz()
@given(changes(), st.sampled_from([".csv", ".tsv"]))
@example([(0.0, 0, b'"')], ".csv")
def test_a_changed_table_of_files_is_read_or_refused_in_one_line(steps, ending):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"cases{ending}"
        path.write_bytes(changed(TABLE if ending == ".csv" else TABLE.replace(b",", b"\t"), steps))
        for read in (lambda: read_case_table(path, "flair"), lambda: read_patients(path)):
            try:
                read()
            except UsageError as error:
                assert str(error).startswith((str(path), f"data.patients={path}"))


@fuzz(0.2)
@given(changes())
def test_a_changed_card_is_read_or_refused_in_one_line(steps):
    content = (weights_folder("embedded") / "card.json").read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "card.json").write_bytes(changed(content, steps))
        try:
            trained_on(Path(folder))
        except WeightsError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(("name", "load"), [("decoder", load_decoder), ("converter", load_converter)])
def test_changed_weights_are_loaded_or_refused_in_one_line(name, load):
    content = (weights_folder("embedded") / f"{name}.safetensors").read_bytes()
    header = int.from_bytes(content[:8], "little") + 8  # where a change means most
    with open_tensors(weights_folder("embedded") / f"{name}.safetensors") as tensors:
        fits = json.loads(tensors.metadata()["fits"])

    @fuzz(0.2)
    @given(changes(), st.booleans())
    def check(steps, in_header):
        damaged = changed(content[:header], steps) + content[header:] if in_header else changed(content, steps)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.safetensors"
            path.write_bytes(damaged)
            try:
                load(Path(folder), fits)
            except WeightsError as error:
                assert "\n" not in str(error)

    check()


@fuzz(0.2)
@given(changes())
def test_a_changed_table_of_rows_is_read_or_refused_in_one_line(steps):
    content = (EARLIER / "run" / "predictions.parquet").read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.parquet"
        path.write_bytes(changed(content, steps))
        try:
            read_table(str(path))
        except StoreError as error:
            assert "\n" not in str(error)

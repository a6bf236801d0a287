"""Who is screened: the cohort file, its splits and the caveats of weights that have seen it."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect_harness import write_case

from medad_core.config import Settings, load_settings
from medad_core.data.names import patient_of
from medad_core.errors import StoreError
from medad_core.inbox.view import _with_all_columns
from medad_core.models.weights import limits_of, weights_folder
from medad_core.run.cohort import Cohort, Member, cohort_of, settle_cohort
from medad_core.run.gather import find_cohort
from medad_core.stages.caveats import caveats
from medad_core.stages.evaluate import write_predictions
from medad_core.store import PREDICTIONS

NARROW = load_settings(None, ["data.first_slice=60", "data.last_slice=62"]).data


def test_two_bad_folders_of_one_name_stop_neither_each_other_nor_the_good_case(tmp_path):
    write_case(tmp_path, "BraTS2021_00001", seed=1)
    for site in ("A", "B"):
        (tmp_path / site).mkdir()
        (tmp_path / site / "scan.nii.gz").write_bytes(b"")
    members = find_cohort(tmp_path, NARROW).members
    assert len({member.case_id for member in members}) == len(members)
    assert [member.case_id for member in members if member.rejected is None] == ["BraTS2021_00001"]
    assert sum(member.rejected is not None for member in members) == 2


def test_a_cohort_that_moved_is_the_same_and_one_that_changed_is_refused_by_name(tmp_path):
    write_case(tmp_path / "here", "BraTS2021_00001", seed=1)
    settle_cohort(str(tmp_path / "run"), find_cohort(tmp_path / "here", NARROW))
    shutil.move(tmp_path / "here", tmp_path / "there")
    settle_cohort(str(tmp_path / "run"), find_cohort(tmp_path / "there", NARROW))
    assert cohort_of(str(tmp_path / "run")).root == str(tmp_path / "there")
    write_case(tmp_path / "there", "BraTS2021_00002", seed=2)
    with pytest.raises(StoreError, match="BraTS2021_00002"):
        settle_cohort(str(tmp_path / "run"), find_cohort(tmp_path / "there", NARROW))


@pytest.mark.parametrize("damage", ["{", "", '{"root": "data", "members": 3}'])
def test_a_damaged_cohort_is_one_line_with_the_way_out(tmp_path, damage):
    (tmp_path / "cohort.json").write_text(damage)
    for read in (cohort_of, lambda run: settle_cohort(run, cohort(("a", "test")))):
        with pytest.raises(
            StoreError,
            match=r"cohort\.json is damaged .*; bring it back from a backup, or delete it and run `medad screen",
        ) as raised:
            read(str(tmp_path))
        assert "\n" not in str(raised.value)


def test_predictions_that_are_there_are_left_alone_whatever_wrote_them(tmp_path):
    path = tmp_path / "predictions.parquet"
    row = {
        field.name: None
        if field.nullable
        else 0.5
        if pa.types.is_floating(field.type)
        else "x"
        if pa.types.is_string(field.type)
        else 1
        for field in PREDICTIONS
    }
    rows, other = (
        pa.Table.from_pandas(pd.DataFrame([row | {"anomaly_score": score}]), schema=PREDICTIONS, preserve_index=False)
        for score in (0.25, 0.5)
    )
    pq.write_table(rows.replace_schema_metadata({"pandas": "of another version"}), path, compression="gzip")
    before = path.read_bytes()
    write_predictions(str(path), rows)
    assert path.read_bytes() == before
    earlier = rows.drop_columns(["unstable"])  # as versions wrote them that knew nothing of it
    pq.write_table(earlier, path)
    before = path.read_bytes()
    write_predictions(str(path), rows)
    assert path.read_bytes() == before
    write_predictions(str(path), other)
    assert pq.read_table(path).equals(other)
    path.write_bytes(before[:100])
    write_predictions(str(path), rows)
    assert pq.read_table(path).equals(rows)


def test_rows_of_earlier_versions_get_the_columns_that_came_since():
    kinds = {pa.string(): "C1", pa.bool_(): True}
    row = {field.name: None if field.nullable else kinds.get(field.type, 1) for field in PREDICTIONS}
    rows = pa.Table.from_pylist([row], schema=PREDICTIONS)
    completed = _with_all_columns(rows.drop_columns(["patient", "unstable"]))
    assert completed.schema.names == PREDICTIONS.names and completed.to_pylist() == rows.to_pylist()


def test_visits_of_a_patient_share_a_split(tmp_path):
    for number in range(12):
        write_case(tmp_path, f"BraTS-GLI-{number // 2:05d}-{number % 2:03d}", seed=number, tumour=range(61, 64))
    splits: dict[str, set[str]] = {}
    for member in find_cohort(tmp_path, NARROW).members:
        splits.setdefault(patient_of(member.case_id), set()).add(member.split)
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {"train", "validation", "test"}


def cohort(*members: tuple[str, str]) -> Cohort:
    return Cohort(root="data", members=tuple(Member(case_id=case_id, split=split) for case_id, split in members))


def test_cases_that_trained_the_weights_are_said_to_flatter():
    learned = json.loads((weights_folder("embedded") / "card.json").read_text())["cases"][0]
    (limits,) = caveats(cohort(("other", "test")), Settings())
    assert limits == limits_of(weights_folder("embedded")) and "gliomas" in limits

    def said(*members: tuple[str, str]) -> str:
        first, second = caveats(cohort(*members), Settings())
        assert first == limits
        return second

    assert "1 of the 2 cases" in said((learned, "test"), ("other", "train"))
    assert "in the split test too" in said((learned, "test"), ("other", "train"))
    assert "not those of the split test" in said((learned, "train"), ("other", "test"))
    assert "test" not in said((learned, "screen"), ("other", "screen")).split("The weights")[0]


def test_weights_that_are_gone_are_said_to_be_gone_and_not_to_be_clean():
    settings = load_settings(None, ["models.weights=/nowhere/weights"])
    assert "cannot tell whether they were trained on these cases" in caveats(cohort(("other", "test")), settings)[0]

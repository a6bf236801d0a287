"""A run that is opened: what it takes over from disk, what it refuses, and what it notices later."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from prefect_harness import AFFINE, SIZE, WORDS, write_case

from medad_core.config import Settings, load_settings
from medad_core.data.cases import Discovery
from medad_core.data.patients import with_patients
from medad_core.data.read import read_slices
from medad_core.errors import CaseError, StoreError, UsageError, WeightsError
from medad_core.run import gather
from medad_core.run.fingerprints import check_planned
from medad_core.run.run import Run
from medad_core.stages import maps, slices


@pytest.fixture
def data(tmp_path) -> Path:
    for number in range(6):
        write_case(tmp_path / "data", f"BraTS2021_{number:05d}", seed=number, tumour=range(60 + number % 2, 64))
    return tmp_path / "data"


def opened(data: Path, *words: str) -> Run:
    return Run.open(str(data), str(data.parent / "run"), load_settings(None, [*WORDS, *words]))


def test_a_run_that_was_begun_is_opened_without_a_look_into_its_masks(data, monkeypatch):
    first = opened(data)
    slices.plan(first)
    monkeypatch.setattr(gather, "read_mask", lambda *_: pytest.fail("a mask was opened"))
    monkeypatch.setattr(gather, "_is_phantom", lambda *_: pytest.fail("a volume was opened"))
    assert opened(data).cohort == first.cohort


@pytest.mark.parametrize("word", ["data.split.seed=7", "data.first_slice=61"])
def test_splits_are_never_taken_over_from_other_settings(data, word):
    first = opened(data)
    slices.plan(first)
    with pytest.raises(StoreError, match=r"was made of other data|data\.first_slice"):
        slices.plan(opened(data, word))
    shutil.rmtree(data.parent / "run" / "slices")
    (data.parent / "run" / "cohort.json").unlink()
    again = opened(data, word)
    fresh = gather.find_cohort(data, load_settings(None, [*WORDS, word]).data)
    assert again.cohort == fresh


def test_deleting_the_slices_alone_lets_no_splits_of_other_settings_through(data):
    slices.plan(opened(data))
    shutil.rmtree(data.parent / "run" / "slices")
    with pytest.raises(StoreError, match="was made of other data"):
        opened(data, "data.split.seed=7")


def test_a_folder_that_is_none_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        Run.open(str(tmp_path / "nothing"), str(tmp_path / "run"), Settings())
    assert not (tmp_path / "run").exists()


def test_weights_that_were_replaced_after_a_stage_was_planned_are_refused(data):
    from medad_core.models.weights import weights_folder

    weights = data.parent / "weights"
    shutil.copytree(weights_folder("embedded"), weights)
    run = opened(data, f"models.weights={weights}")
    slices.plan(run)
    slices.run_parts(run, [0, 1, 2, 3, 4, 5])
    run.stage("slices").finish()
    maps.plan(run)
    decoder = weights / "decoder.safetensors"
    content = bytearray(decoder.read_bytes())
    content[-1] ^= 1
    decoder.write_bytes(content)
    with pytest.raises(WeightsError, match="the stage maps was planned with other content: decoder_sha256"):
        maps.run_parts(run, [0])


def test_planned_models_are_compared_field_by_field():
    check_planned("maps", {"encoder": "a", "inputs": "3 cases"}, {"encoder": "a"})
    for current in ({"encoder": "b"}, {"encoder": "a", "precision": "bfloat16"}):
        with pytest.raises(WeightsError, match=r"encoder|precision"):
            check_planned("maps", {"encoder": "a"}, current)


def test_a_cohort_behind_a_link_is_the_same_cohort(data):
    first = opened(data)
    slices.plan(first)
    link = data.parent / "link"
    link.symlink_to(data)
    behind = Run.open(str(link), first.uri, first.settings).cohort
    assert behind.members == first.cohort.members and behind.root == str(link), "the name of a link may hide another"


@pytest.mark.parametrize("word", ["data.tumour_labels=[1]", "data.levels=brain", "data.checks=warn"])
def test_what_is_declared_about_the_cases_cannot_change_under_a_run(data, word):
    slices.plan(opened(data))
    words = [*WORDS, word]
    with pytest.raises(StoreError, match=r"was made (of other data|with other content)"):
        slices.plan(Run.open(str(data), str(data.parent / "run"), load_settings(None, words)))


def test_an_odd_mask_never_stops_the_other_cases(data):
    """Each is a crop that can be used, or a reason; none is an error of the whole command, or takes the memory."""
    flipped = AFFINE @ np.diag([1.0, 1, -1, 1])
    vast = nib.Nifti1Header()
    vast.set_data_dtype(np.float64)
    vast.set_data_shape((1024, 1024, 1024))
    vast.set_sform(AFFINE, 1)
    vast["magic"] = b"n+1"
    short = np.zeros((SIZE, SIZE, 30), np.uint8)
    masks = {
        "upside down": nib.Nifti1Image(short, flipped).to_bytes(),
        "on its side": nib.Nifti1Image(np.zeros((SIZE, 30, SIZE), np.uint8), AFFINE[:, [0, 2, 1, 3]]).to_bytes(),
        "shorter": nib.Nifti1Image(short, AFFINE).to_bytes(),
        "no volume": nib.Nifti1Image(np.zeros((SIZE, SIZE, SIZE, 2), np.uint8), AFFINE).to_bytes(),
        "vast": vast.binaryblock,
    }
    settings = load_settings(None, WORDS).data
    (packed,) = (data / "BraTS2021_00000").glob("*_seg.nii.gz")
    packed.unlink()
    for what, content in masks.items():
        packed.with_suffix("").write_bytes(content)
        if what == "vast":
            os.truncate(packed.with_suffix(""), 9 << 30)
        cohort = gather.find_cohort(data, settings)
        failed = {}
        for member in cohort.members:
            try:
                read_slices(cohort.case(member, "flair"), settings)
            except CaseError as error:
                failed[error.case_id] = error.reason
        assert len(cohort.members) == 6 and failed.keys() <= {"BraTS2021_00000"}, what
    assert "data.max_gib=4" in failed["BraTS2021_00000"]


def test_the_largest_file_is_no_part_of_what_a_run_is_made_of(data):
    first = opened(data)
    slices.plan(first)
    again = opened(data, "data.max_gib=2")
    assert slices.plan(again) == slices.plan(first)


def test_a_corrected_table_of_patients_is_noticed(data, tmp_path):
    table = tmp_path / "patients.csv"
    names = [f"BraTS2021_{number:05d}" for number in range(6)]

    def written(patients: str) -> str:
        table.write_text(
            "case_id,patient\n" + "".join(f"{name},{p}\n" for name, p in zip(names, patients, strict=True))
        )
        return f"data.patients={table}"

    first = opened(data, written("abcdef"))
    slices.plan(first)
    assert opened(data, written("abcdef")).cohort == first.cohort
    try:
        again = opened(data, written("aaaaaa"))
    except StoreError as error:  # the splits are others now
        assert "splits" in str(error)
    else:
        assert {member.patient_id for member in again.cohort.members} == {"a"}


def test_the_pathology_of_a_case_comes_from_the_table_and_a_corrected_one_is_noticed(data, tmp_path):
    table = tmp_path / "cases.csv"

    def written(pathology: str) -> str:
        lines = [f"BraTS2021_{number:05d},p{number},2024-01-0{number + 1},{pathology}" for number in range(6)]
        table.write_text("\n".join(["case_id,patient,date,pathology", *lines]))
        return f"data.patients={table}"

    first = opened(data, written("glioma"))
    assert {(member.pathology, member.visit) for member in first.cohort.members} == {
        ("glioma", f"2024-01-0{day}") for day in range(1, 7)
    }
    slices.plan(first)
    again = opened(data, written("MS"))
    assert {member.pathology for member in again.cohort.members} == {"MS"}
    assert {member.pathology for member in opened(data, written("n/a")).cohort.members} == {None}
    assert slices.plan(again) == slices.plan(first)  # no row is another one


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case_id,patient\na\n", "line 2: has another number of fields"),
        ("case_id,patient,patient\na,b,c\n", "'patient' occurs twice"),
        ('case_id,patient\na,"b\n', "unexpected end of data"),
        ("case_id,visit\na,b\n", "needs the columns case_id and patient"),
    ],
)
def test_a_table_of_patients_that_is_not_clear_is_refused(tmp_path, text, message):
    table = tmp_path / "patients.csv"
    table.write_text(text)
    with pytest.raises(UsageError, match=message):
        with_patients(Discovery((), (), ()), str(table))


def test_a_cohort_of_an_inbox_keeps_to_what_was_declared():
    from medad_core.run.fingerprints import run_fingerprint

    plain = run_fingerprint(load_settings(None, WORDS))
    for word in ("data.tumour_labels=[1]", "data.levels=brain", "data.checks=warn"):
        assert run_fingerprint(load_settings(None, [*WORDS, word])) != plain
    assert not {key for key in run_fingerprint(Settings()) if key in ("data.levels", "data.checks")}

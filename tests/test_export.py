"""Maps go back to the voxels that their pictures were made of, and a viewer finds them on the volume."""

from __future__ import annotations

import html
import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import ndimage
from test_cli import medad
from test_data_read import AFFINE, ALL_ORIENTATIONS, FIRST, LAST, brain_array, read, settings

from medad_core.data.cases import Case, VolumeRef
from medad_core.data.place import Place, numbers_of
from medad_core.data.read import CaseSlices, read_slices
from medad_core.errors import UsageError
from medad_core.export.space import to_file
from medad_core.export.volumes import _bids_names, export
from medad_core.media import file_name, read_csv
from medad_core.models.decoder import render_map
from medad_core.run.run import Run
from medad_core.stages.rows import grids_of, windows_of

pytest_plugins = ("prefect_harness",)


def there(slices: CaseSlices, pictures: np.ndarray) -> np.ndarray:
    return to_file(pictures.astype(np.float32), int(slices.slice_index[0]), slices.place)


def turned(angle: float) -> np.ndarray:
    """The affine of the tests, turned about two axes: axes of the scanner are then none of the patient's."""
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[1, 0, 0, 3.25], [0, c, -s, -7.5], [0, s, c, 11], [0, 0, 0, 1]])
    return turn @ np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ AFFINE


@pytest.mark.parametrize("angle", [0, 0.2])
@pytest.mark.parametrize("orientation", ALL_ORIENTATIONS, ids=lambda o: "".join(nib.orientations.ornt2axcodes(o)))
def test_every_pixel_goes_back_to_its_voxel(tmp_path, orientation, angle):
    # With holes at random, so that no shift and no turn brings the brain onto itself.
    values = brain_array() * (np.random.default_rng(1).random((13, 11, 9)) < 0.7).astype(np.int16)
    image = nib.Nifti1Image(values, turned(angle)).as_reoriented(orientation)
    nib.save(image, tmp_path / "x.nii.gz")
    slices = read(VolumeRef(str(tmp_path / "x.nii.gz")))
    read_voxels = there(slices, np.ones_like(slices.brain)) > 0
    assert read_voxels.shape == image.shape and read_voxels.sum() == slices.brain.size
    brain = there(slices, slices.brain) > 0
    assert brain.any() and np.array_equal(brain, (np.asarray(image.dataobj) != 0) & read_voxels)


@pytest.mark.parametrize("edge", [0.9, 3.3, 4.0])
def test_no_slice_is_lost_to_rounding_at_any_angle(edge):
    pictures = np.broadcast_to(np.arange(1, 31, dtype=np.float32)[:, None, None], (30, 4, 5))
    for angle in np.linspace(0, 1.2, 40):
        affine = (turned(angle) @ np.diag([0.45, 0.45, edge / 4, 1])).astype(np.float32).astype(float)
        to_ras = affine[:, [2, 1, 0, 3]]  # pictures of the volume as it is stored
        out = to_file(pictures, 0, Place((5, 4, 30), numbers_of(affine), numbers_of(to_ras), 30, sri24=False))
        assert np.array_equal(out, pictures.transpose(2, 1, 0))


def test_a_picture_knows_where_it_lies_in_the_patient(tmp_path):
    image = nib.Nifti1Image(brain_array(), turned(0.2))
    nib.save(image, tmp_path / "x.nii.gz")
    slices = read(VolumeRef(str(tmp_path / "x.nii.gz")))
    number, row, column = np.argwhere(slices.brain)[0]
    (voxel,) = np.argwhere(
        there(slices, np.arange(slices.brain.size).reshape(slices.brain.shape) == slices.brain.argmax())
    )
    expected = image.affine @ [*voxel, 1]
    at = slices.place.matrix @ [slices.slice_index[number], row, column, 1]
    assert at == pytest.approx(expected, abs=1e-4)
    assert slices.place.slices == 9 and not slices.place.sri24


def test_a_volume_among_others_in_one_file_has_three_axes(tmp_path):
    nib.save(nib.Nifti1Image(np.stack([brain_array(), brain_array(seed=1)], axis=3), AFFINE), tmp_path / "x.nii.gz")
    slices = read(VolumeRef(str(tmp_path / "x.nii.gz"), channel=1))
    assert slices.place.shape == (13, 11, 9) and there(slices, slices.brain).shape == (13, 11, 9)


@pytest.mark.parametrize("edge", [0.45, 0.94, 1.3])
@pytest.mark.parametrize("upside_down", [False, True])
@pytest.mark.parametrize("last", [FIRST, LAST])
def test_what_was_brought_to_1_mm_goes_back_to_where_it_was(tmp_path, edge, upside_down, last):
    shape = (90, 110, 9)
    grid = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    middles, radii = (40, 60, 4), (20, 30, 40)
    ball = sum(((axis - at) / radius) ** 2 for axis, at, radius in zip(grid, middles, radii, strict=True)) < 1
    values = np.where(ball, np.random.default_rng(0).integers(100, 900, shape), 0).astype(np.int16)
    affine = turned(0.2) @ np.diag([edge, edge / 1.0015, -1 if upside_down else 1, 1])
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "x.nii.gz")
    case = Case("case", {"flair": VolumeRef(str(tmp_path / "x.nii.gz"))}, None, layout="flat")
    slices = read_slices(case, settings(checks="warn", last_slice=last))
    assert slices.spacing_mm[:2] == pytest.approx((1, 1))
    shown = there(slices, np.ones_like(slices.brain))
    numbers = [8 - number if upside_down else number for number in range(FIRST, last + 1)]
    assert (shown[:, :, numbers] == 1).all() and shown.sum() == 90 * 110 * len(numbers)
    back, own = there(slices, slices.brain) >= 0.5, ball & (shown > 0)
    assert 2 * (back & own).sum() / (back.sum() + own.sum()) > 0.97
    centres = [np.array(ndimage.center_of_mass(one)) for one in (back, own)]
    assert np.abs(centres[0] - centres[1])[:2].max() * edge < 0.15 and centres[0][2] == pytest.approx(
        centres[1][2], abs=0.01
    )


def test_exported_maps_are_those_of_the_run_on_the_grid_of_the_volume(screened, tmp_path):
    out = tmp_path / "out"
    done = medad("export", screened.run, "--out", str(out))
    assert done.exit_code == 0, done.output
    assert "3 cases" in done.output
    run = Run.reopen(screened.run)
    for case_id in ("BraTS2021_00000", "BraTS2021_00001", "BraTS2021_00003"):
        volume = nib.load(Path(screened.data) / case_id / f"{case_id}_flair.nii.gz")
        stored = nib.load(out / f"{case_id}_map.nii.gz")
        mask = nib.load(out / f"{case_id}_mask.nii.gz")
        assert np.array_equal(stored.affine, volume.affine) and stored.shape == mask.shape == volume.shape
        assert (stored.get_data_dtype(), mask.get_data_dtype()) == (np.float32, np.uint8)
        maps = run.stage("maps").read_case(case_id)
        for number, grid, window in zip(range(60, 63), grids_of(maps), windows_of(maps) or [None] * 3, strict=True):
            # Stored left, posterior, superior; rows of a picture run to posterior, columns to the left.
            picture = np.asarray(stored.dataobj)[:, :, number].T
            assert np.array_equal(picture, render_map(grid, 64, 64, window).astype(np.float32))
            assert np.array_equal(np.asarray(mask.dataobj)[:, :, number].T, picture >= 0.5)
        assert not np.asarray(stored.dataobj)[:, :, [59, 63]].any()
        assert "slices 60 to 62" in stored.header["descrip"].item().decode()


def test_bids_names_and_what_they_say(screened, tmp_path):
    exported = export(Run.reopen(screened.run), tmp_path / "bids", "bids", ["BraTS2021_00001"])
    assert exported.cases == 1
    names = sorted(
        str(path.relative_to(tmp_path / "bids")) for path in (tmp_path / "bids").rglob("*.*") if path.name[0] != "."
    )
    stem = "sub-BraTS202100001/anat/sub-BraTS202100001_space-orig_label-lesion_desc-medad"
    assert names == [
        "dataset_description.json",
        *(f"{stem}_{end}" for end in ("mask.json", "mask.nii.gz", "probseg.json", "probseg.nii.gz")),
    ]
    description = json.loads((tmp_path / "bids" / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["GeneratedBy"][0]["Name"] == "medad"
    facts = json.loads((tmp_path / "bids" / f"{stem}_mask.json").read_text())
    assert facts["ScreenedSlices"] == [60, 62] and facts["Threshold"] == 0.5


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_figure_has_the_slice_its_map_and_what_was_asked_and_answered(screened, tmp_path, kind):
    out = tmp_path / f"slice.{kind}"
    done = medad("figure", screened.run, "BraTS2021_00001", 62, "--out", out)
    assert done.exit_code == 0, done.output
    content = out.read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])
    if kind == "svg":
        text = html.unescape(content.decode())
        rows = pd.read_parquet(Path(screened.run) / "predictions.parquet")
        row = rows[(rows["case_id"] == "BraTS2021_00001") & (rows["slice_index"] == 62)].iloc[0]
        for words in ("Is there any anomaly", row["answer"], "BraTS2021_00001, slice 62", "expert outline", "50 mm"):
            assert words in text
        assert "PHANTOM" not in text and "not a medical device" in text


def test_a_figure_of_what_is_not_there_is_refused(screened, tmp_path):
    for words, said in (
        (("BraTS2021_00001", 7, "--out", tmp_path / "x.png"), "slices 60 to 62"),
        (("nobody", 61, "--out", tmp_path / "x.png"), "no such case"),
        (("BraTS2021_00001", 61, "--out", tmp_path / "x.doc"), ".png, .svg, .pdf"),
    ):
        done = medad("figure", screened.run, *words)
        assert done.exit_code == 2 and said in done.output and not list(tmp_path.iterdir())


def bids_names(*cases: tuple[str, str, str | None]) -> dict[str, str]:
    """Names of cases (case_id, patient, visit)."""
    members = [SimpleNamespace(case_id=case, patient_id=patient, visit=visit) for case, patient, visit in cases]
    return _bids_names(SimpleNamespace(cohort=SimpleNamespace(members=members)), [case for case, *_ in cases])


def test_names_of_bids_are_those_of_the_raw_dataset_and_no_two_are_alike():
    (name,) = bids_names(("sub-05_ses-02", "sub-05", "ses-02")).values()
    assert name == "sub-05/ses-02/anat/sub-05_ses-02_space-orig_label-lesion_desc-medad"
    two = bids_names(("GLI-1-100", "GLI-1", None), ("GLI-1-101", "GLI-1", None))
    assert [Path(name).parts[:2] for name in two.values()] == [
        ("sub-GLI1", "ses-GLI1100"),
        ("sub-GLI1", "ses-GLI1101"),
    ]
    for cases in ([("a", "a-b", None), ("b", "ab", None)], [("x-1", "p", None), ("x1", "p", None)]):
        with pytest.raises(UsageError, match=r"would both be .* use --format nifti"):
            bids_names(*cases)


def test_no_name_of_a_case_leaves_the_folder():
    names = ["../x", "a/b", "a%2Fb", "a\\b", ".."]
    files = [f"{file_name(name)}_map.nii.gz" for name in names]
    assert len(set(files)) == len(names) and all(Path(file).name == file and "\\" not in file for file in files)


def test_what_cannot_be_exported_is_said_in_a_line(screened, tmp_path):
    for words, said in (
        (("--case", "BraTS2021_00002"), "no maps of this case"),  # rejected
        (("--format", "dicom"), "medad knows nifti and bids"),
    ):
        done = medad("export", screened.run, "--out", str(tmp_path / "out"), *words)
        assert done.exit_code == 2 and said in done.output and not (tmp_path / "out").exists()


def test_facts_of_cases_are_those_of_their_segmentations(screened):
    cases = {row["case_id"]: row for row in pq.read_table(Path(screened.run) / "cases.parquet").to_pylist()}
    lesions = pq.read_table(Path(screened.run) / "lesions.parquet").to_pylist()
    assert set(cases) == {"BraTS2021_00000", "BraTS2021_00001", "BraTS2021_00003"}
    for case_id, row in cases.items():
        image = nib.load(Path(screened.data) / case_id / f"{case_id}_seg.nii.gz")
        mask = np.asarray(image.dataobj)[:, :, 60:63] > 0
        assert row["volume_ml_true"] == pytest.approx(mask.sum() / 1000) and row["lesions_true"] == 1
        assert row["is_cut_true"]  # the lesion goes on to slice 63
        (true,) = [one for one in lesions if (one["case_id"], one["source"]) == (case_id, "mask")]
        centre = image.affine @ [*(np.argwhere(mask).mean(axis=0) + np.array([0, 0, 60])), 1]
        assert (true["x_mm"], true["y_mm"], true["z_mm"]) == pytest.approx(tuple(centre[:3]), abs=1e-3)
        assert (true["first_slice"], true["last_slice"]) == (60 + int(case_id[-1]) % 2, 62)
        assert row["regions"] is None and "SRI24" in row["regions_not_named"]
    assert sum(one["source"] == "map" for one in lesions) == sum(row["lesions"] for row in cases.values())


def test_the_worklist_is_in_the_order_of_its_rule(screened):
    rows = list(read_csv((Path(screened.run) / "worklist.csv").read_text(encoding="utf-8")))
    assert [int(row["place"]) for row in rows] == [1, 2, 3]
    tier = {"map and language model": 0, "none": 2}
    keys = [(tier.get(row["finding"], 1), -float(row["volume_ml"]), -float(row["highest_p_yes"])) for row in rows]
    assert keys == sorted(keys)
    cases = {row["case_id"]: row for row in pq.read_table(Path(screened.run) / "cases.parquet").to_pylist()}
    assert all(row["volume_ml"] == f"{cases[row['case_id']]['volume_ml']:.2f}" for row in rows)

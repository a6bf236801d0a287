"""Maps go back to the voxels that their pictures were made of, and a viewer finds them on the volume."""

from __future__ import annotations

import gzip
import html
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import nibabel as nib
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import ndimage
from test_cli import medad
from test_data_read import AFFINE, ALL_ORIENTATIONS, FIRST, LAST, brain_array, read, settings

from flows.cli.export import FORMATS
from medad_core.data.cases import Case, VolumeRef
from medad_core.data.own_folders import mark_folder
from medad_core.data.place import Place, numbers_of
from medad_core.data.read import CaseSlices, read_slices
from medad_core.errors import UsageError
from medad_core.export.bids import NOT_EXPORTED, BidsDataset, bids_names
from medad_core.export.case_map import CaseMap
from medad_core.export.exporting import export
from medad_core.export.nifti import NiftiFiles
from medad_core.export.niivue import NiivueDocuments, read_volume
from medad_core.export.protocol import Format
from medad_core.export.space import to_file
from medad_core.media import file_name, read_csv
from medad_core.models.decoder import render_map
from medad_core.run.cohort import Cohort, File, Member
from medad_core.run.run import Run
from medad_core.stages.evaluate import evaluate_run
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


@pytest.mark.parametrize("channel", [0, 1])
def test_a_volume_among_others_in_one_file_has_three_axes_and_its_own_voxels(tmp_path, channel):
    holes = np.random.default_rng(2).random((13, 11, 9, 2)) < 0.7
    values = np.stack([brain_array(), brain_array(seed=1)], axis=3) * holes.astype(np.int16)
    nib.save(nib.Nifti1Image(values, turned(0.2)), tmp_path / "x.nii.gz")
    slices = read(VolumeRef(str(tmp_path / "x.nii.gz"), channel=channel))
    read_voxels = there(slices, np.ones_like(slices.brain)) > 0
    assert slices.place.shape == (13, 11, 9) == read_voxels.shape
    assert np.array_equal(there(slices, slices.brain) > 0, (values[..., channel] != 0) & read_voxels)


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
    assert done.exit_code == 3, done.output
    assert "3 cases" in done.output and "BraTS2021_00002 is not exported: the run rejected it" in done.output
    (row,) = read_csv((out / NOT_EXPORTED).read_text(encoding="utf-8"))
    assert row["case_id"] == "BraTS2021_00002" and "truncated" in row["reason"]
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
    assert exported.cases == 1 and not exported.skipped
    names = sorted(
        str(path.relative_to(tmp_path / "bids")) for path in (tmp_path / "bids").rglob("*.*") if path.name[0] != "."
    )
    stem = "sub-BraTS202100001/anat/sub-BraTS202100001_space-orig_label-lesion"
    assert names == [
        "README.md",
        "dataset_description.json",
        NOT_EXPORTED,
        *(f"{stem}_{end}" for end in ("mask.json", "mask.nii.gz", "probseg.json", "probseg.nii.gz")),
    ]
    description = json.loads((tmp_path / "bids" / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    (by,) = description["GeneratedBy"]
    assert (by["Name"], by["Version"]) == ("medad", version("medad"))
    assert description["SourceDatasets"] == [{"URL": Path(screened.data).as_uri()}]
    for end, kind in (("mask", "Lesion"), ("probseg", None)):
        facts = json.loads((tmp_path / "bids" / f"{stem}_{end}.json").read_text())
        assert facts["ScreenedSlices"] == [60, 62] and facts.get("Type") == kind and not facts["GeneratedPhantom"]
        assert facts["Sources"] == ["bids:source:BraTS2021_00001/BraTS2021_00001_flair.nii.gz"]
        assert (facts.get("Threshold") == 0.5) == (end == "mask")


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


def names_of(*cases: tuple[str, str, str | None]) -> dict[str, str]:
    """Names of cases (case_id, patient, visit)."""
    members = tuple(Member(case, "test", patient=patient, visit=visit) for case, patient, visit in cases)
    return bids_names(Cohort("/data", members), [case for case, *_ in cases])


def test_names_of_bids_are_those_of_the_raw_dataset_and_no_two_are_alike():
    (name,) = names_of(("sub-05_ses-02", "sub-05", "ses-02")).values()
    assert name == "sub-05/ses-02/anat/sub-05_ses-02_space-orig_label-lesion"
    two = names_of(("GLI-1-100", "GLI-1", None), ("GLI-1-101", "GLI-1", None))
    assert [Path(name).parts[:2] for name in two.values()] == [
        ("sub-GLI1", "ses-GLI1100"),
        ("sub-GLI1", "ses-GLI1101"),
    ]
    for cases in ([("a", "a-b", None), ("b", "ab", None)], [("x-1", "p", None), ("x1", "p", None)]):
        with pytest.raises(UsageError, match=r"would both be .* use --format nifti"):
            names_of(*cases)


def test_no_name_of_a_case_leaves_the_folder():
    names = ["../x", "a/b", "a%2Fb", "a\\b", ".."]
    files = [f"{file_name(name)}_map.nii.gz" for name in names]
    assert len(set(files)) == len(names) and all(Path(file).name == file and "\\" not in file for file in files)


def test_what_cannot_be_exported_is_said_in_a_line(screened, tmp_path):
    for words, said in (
        (("--case", "BraTS2021_00002"), "no maps of this case"),  # rejected
        (("--format", "dicom"), "medad knows nifti, bids, dicom-seg and niivue"),
        (("--format", "dicom-seg"), "needs --reference FOLDER"),
        (("--format", "bids", "--reference", str(tmp_path)), "no other format has --reference"),
        (("--format", "dicom-seg", "--reference", str(tmp_path / "none")), "no such folder"),
    ):
        done = medad("export", screened.run, "--out", str(tmp_path / "out"), *words)
        assert done.exit_code == 2 and said in done.output and not (tmp_path / "out").exists(), done.output
        assert len(done.output.splitlines()) == 1


WITHOUT_SERIES = ("nifti", "bids", "niivue")


def test_the_command_knows_every_format():
    assert get_args(Format) == FORMATS


def moved_run(screened, tmp_path: Path) -> tuple[Path, Path]:
    """The run of the tests with a copy of its data below `tmp_path`."""
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(screened.data, data)
    shutil.copytree(screened.run, run)
    Run.open(str(data), str(run), screened.settings)
    return data, run


def test_a_missing_or_changed_original_is_named_and_the_other_cases_are_written(screened, tmp_path):
    data, run = moved_run(screened, tmp_path)
    gone, changed, same = (f"BraTS2021_{number:05d}" for number in (0, 1, 3))
    (data / gone / f"{gone}_flair.nii.gz").unlink()
    volume = data / changed / f"{changed}_flair.nii.gz"
    image = nib.load(volume)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine), volume)
    for kind in WITHOUT_SERIES:
        done = medad("export", str(run), "--out", str(tmp_path / kind), "--format", kind)
        assert done.exit_code == 3 and len(done.output.splitlines()) == 4, done.output
        (line,) = [line for line in done.output.splitlines() if changed in line]
        assert "other content than the run read" in line and f"medad screen DATA --out {run} --refresh" in line
        (line,) = [line for line in done.output.splitlines() if gone in line]
        assert f"{gone}_flair.nii.gz is not there any more" in line
        assert ("--format nifti" in line) == (kind == "niivue")
        names = " ".join(path.name for path in (tmp_path / kind).rglob("*"))
        expected = {gone: kind != "niivue", changed: False, same: True}
        for case_id, is_written in expected.items():
            assert (case_id.replace("_", "" if kind == "bids" else "_") in names) == is_written, (kind, case_id)
    medad("export", screened.run, "--out", str(tmp_path / "before"))
    name = f"{gone}_map.nii.gz"  # of the missing file, nothing but itself is lost
    assert (tmp_path / "nifti" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


def test_the_mask_is_the_map_at_the_threshold_of_the_results(screened, tmp_path):
    _, run = moved_run(screened, tmp_path)
    others = screened.settings.evaluate.model_copy(update={"map_threshold": 0.05})
    evaluate_run(Run.reopen(str(run), screened.settings.model_copy(update={"evaluate": others})))
    export(Run.reopen(str(run)), tmp_path / "out", "nifti", ["BraTS2021_00001"])
    values, mask = (np.asarray(nib.load(path).dataobj) for path in sorted((tmp_path / "out").glob("*.nii.gz")))
    assert mask.sum() == (values >= 0.05).sum() > (values >= 0.5).sum()


def test_what_an_earlier_export_wrote_of_a_case_goes_when_it_cannot_be_written_and_other_reasons_stay(
    screened, tmp_path
):
    data, run = moved_run(screened, tmp_path)
    out, changed, other = tmp_path / "out", "BraTS2021_00001", "BraTS2021_00003"
    export(Run.reopen(str(run)), out, "nifti")
    rejected = {row["case_id"] for row in read_csv((out / "not_exported.csv").read_text())}
    assert (out / f"{changed}_map.nii.gz").exists() and rejected == {"BraTS2021_00002"}
    volume = data / changed / f"{changed}_flair.nii.gz"
    image = nib.load(volume)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine), volume)
    export(Run.reopen(str(run)), out, "nifti", [changed])
    assert not list(out.glob(f"{changed}*")) and (out / f"{other}_map.nii.gz").exists()
    assert {row["case_id"] for row in read_csv((out / "not_exported.csv").read_text())} == rejected | {changed}


def test_a_folder_that_holds_something_else_is_refused(screened, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset_description.json").write_text("{}")
    with pytest.raises(UsageError, match="holds other files"):
        export(Run.reopen(screened.run), tmp_path / "out", "bids")
    assert (tmp_path / "out" / "dataset_description.json").read_text() == "{}"


def test_a_volume_that_is_named_for_another_compression_is_in_the_document(tmp_path):
    image = nib.Nifti1Image(brain_array(), turned(0.2))
    case = map_of(tmp_path / "data", image, np.zeros(image.shape), range(2, 5))
    for content in (image.to_bytes(), gzip.compress(nib.Nifti2Image(brain_array(), turned(0.2)).to_bytes())):
        case.volume.write_bytes(content)
        assert np.array_equal(read_volume(case), brain_array())


def test_an_unfinished_run_is_one_line_with_the_way_out(screened, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(screened.run, run)
    (run / "maps" / "_manifest.json").unlink()
    done = medad("export", str(run), "--out", str(tmp_path / "out"))
    assert done.exit_code == 1 and len(done.output.splitlines()) == 1 and not (tmp_path / "out").exists()
    assert "maps" in done.output and "run" in done.output, done.output


def test_a_run_of_an_earlier_version_says_of_every_case_that_its_place_is_unknown(screened, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(screened.run, run)
    shutil.rmtree(run / "slices" / "_inputs")
    done = medad("export", str(run), "--out", str(tmp_path / "out"))
    assert done.exit_code == 3 and done.output.count("an earlier version made its slices") == 3
    assert "0 cases" in done.output and not list((tmp_path / "out").glob("*.nii.gz"))


def map_of(folder: Path, image: nib.Nifti1Image, values: np.ndarray, slices: range, **member) -> CaseMap:
    """A map `values` of the shape of `image`, of which `slices` of the last axis were screened, beside its volume."""
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(image, folder / "v.nii.gz")
    screened = np.zeros(values.shape, bool)
    screened[..., slices.start : slices.stop] = True
    affine = image.affine.astype(np.float32).astype(float)
    place = Place(values.shape, numbers_of(affine), numbers_of(affine), values.shape[2], sri24=False)
    facts = {"case_id": "case", "split": "test", "volume": File("v.nii.gz", None)} | member
    ends = (slices.start, slices.stop - 1)
    shown = np.where(screened, values, 0).astype(np.float32)
    return CaseMap(Member(**facts), place, shown, screened, ends, 0.5, folder / "v.nii.gz")


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_a_single_slice_and_an_empty_map_are_written_like_any_other(tmp_path, value):
    image = nib.Nifti1Image(brain_array(), AFFINE)
    case = map_of(tmp_path / "data", image, np.full((13, 11, 9), value), range(4, 5))
    root = str(tmp_path / "data")
    out = tmp_path / "out"
    out.mkdir()
    bids = BidsDataset.of(out, Cohort(root, (case.member,)), ["case"])
    for writer in (NiftiFiles(out), bids, NiivueDocuments(out)):
        writer.begin()
        writer.write(case)
    for name in ("case_mask.nii.gz", "sub-case/anat/sub-case_space-orig_label-lesion_mask.nii.gz"):
        mask = np.asarray(nib.load(out / name).dataobj)
        assert mask.dtype == np.uint8 and (mask[:, :, 4] == (value > 0.5)).all()
        assert mask.sum() == mask[:, :, 4].sum()
    assert len(json.loads((out / "case.nvd").read_text())["encodedImageBlobs"]) == 3


def test_a_threshold_of_zero_reaches_no_further_than_what_was_screened(tmp_path):
    case = map_of(tmp_path, nib.Nifti1Image(brain_array(), AFFINE), np.zeros((13, 11, 9)), range(2, 5))
    assert np.array_equal(replace(case, threshold=0.0).mask.astype(bool), case.screened)


@pytest.mark.parametrize("kind", ["int16", "scaled", "float64", "4-D"])
def test_a_document_has_the_values_of_the_volume(tmp_path, kind):
    values = brain_array()
    case = map_of(tmp_path, nib.Nifti1Image(values, AFFINE), np.zeros(values.shape), range(2, 5))
    image = {
        "int16": nib.Nifti1Image(values, AFFINE),
        "scaled": nib.Nifti1Image(values * 0.25, AFFINE, dtype=np.int16),
        "float64": nib.Nifti1Image(values / 3, AFFINE),
        "4-D": nib.Nifti1Image(np.stack([values[::-1], values], axis=3), AFFINE),
    }[kind]
    nib.save(image, case.volume)
    channel = 1 if kind == "4-D" else None
    volume = read_volume(replace(case, member=case.member.replace(volume=File("v.nii.gz", channel))))
    expected = np.asarray(nib.load(case.volume).dataobj)
    assert np.array_equal(volume, (expected[..., 1] if kind == "4-D" else expected).astype(np.float32))
    assert volume.dtype == (np.int16 if kind in ("int16", "4-D") else np.float32)


def run_validator(folder: Path) -> list[dict]:
    """The errors that the BIDS validator finds, which has the schema in it and needs no network."""
    words = [sys.executable, "-c", "from bids_validator_deno import cli; cli()", str(folder), "--format", "json"]
    done = subprocess.run(words, capture_output=True, encoding="utf-8", timeout=300)
    assert done.stdout, done.stderr
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [issue for issue in issues if issue["severity"] == "error"]


def test_the_bids_validator_finds_no_error(tmp_path):
    """Several patients, several visits, names that are none of BIDS, a phantom, and cases that are not exported."""
    image = nib.Nifti1Image(brain_array(), turned(0.2))
    people = [
        ("sub-05_ses-02", "sub-05", "ses-02"),
        ("sub-05_ses-03", "sub-05", "ses-03"),
        ("GLI_1-100", "GLI_1", None),
        ("GLI_1-101", "GLI_1", None),
        ("Müller <img src=x>", "Müller <img src=x>", None),
        ("BraTS2021_00000", "BraTS2021_00000", None),
    ]
    members = tuple(
        Member(
            case, "test", patient=patient, visit=visit, phantom=case == "BraTS2021_00000", volume=File("v.nii.gz", None)
        )
        for case, patient, visit in people
    )
    out = tmp_path / "a name with ü"
    out.mkdir()
    mark_folder(str(out))
    writer = BidsDataset.of(out, Cohort(str(tmp_path / "data"), members), [case for case, *_ in people])
    writer.begin()
    (out / NOT_EXPORTED).write_text("case_id,reason\n", encoding="utf-8")
    case = map_of(tmp_path / "data", image, np.full(image.shape, 0.7), range(2, 5))
    for member in members:
        writer.write(replace(case, member=member))
    assert len(list(out.rglob("*.nii.gz"))) == 2 * len(people)
    assert run_validator(out) == []
    next(out.rglob("*_mask.nii.gz")).rename(out / "sub-05" / "ses-02" / "anat" / "sub-05_ses-02_lesion_mask.nii.gz")
    assert run_validator(out)  # it would have seen a name that is none of BIDS


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

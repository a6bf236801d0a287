"""DICOM beside the series that a case comes from: every voxel on its own place, or one line that says why not.

The series are generated from voxels of a real volume, because none are shipped (`dicom_series.py`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_series import PATIENT, write_series
from dicom_standard import errors_of
from highdicom.pm import ParametricMap
from highdicom.seg import segread
from test_cli import medad
from test_export import map_of, turned

from medad_core.config import load_settings
from medad_core.data.place import numbers_of
from medad_core.errors import CaseError, UsageError
from medad_core.export.case_map import CaseMap
from medad_core.export.dicom import DicomObjects

pytest_plugins = ("prefect_harness",)
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SCREENED = range(5, 11)


@pytest.fixture(scope="module")
def brain(shared_data) -> np.ndarray:
    """Voxels (40, 36, 20) of a real FLAIR."""
    volume = nib.load(shared_data / "brats2021" / "BraTS2021_00495" / "BraTS2021_00495_flair.nii.gz")
    return np.asarray(volume.dataobj)[100:140, 90:126, 70:90].astype(np.int16)


def case_of(folder: Path, voxels: np.ndarray, angle: float = 0.0, **member) -> tuple[CaseMap, nib.Nifti1Image]:
    """A map of values at random in six slices of a volume, whose axes are `angle` off those of the scanner."""
    image = nib.Nifti1Image(voxels, turned(angle) @ np.diag([0.9, 1.1, 1.3, 1]))
    values = np.random.default_rng(0).random(voxels.shape)
    return map_of(folder / "data", image, values, SCREENED, **member), image


def written(case: CaseMap, folder: Path) -> dict[str, pydicom.Dataset]:
    out = folder / "out"
    out.mkdir()
    DicomObjects(out, folder / "series").write(case)
    return {kind: pydicom.dcmread(out / f"case_{kind}.dcm") for kind in ("map", "seg")}


def reason_of(case: CaseMap, folder: Path) -> str:
    out = folder / "out"
    out.mkdir()
    with pytest.raises(CaseError) as caught:
        DicomObjects(out, folder / "series").write(case)
    assert not list(out.iterdir()) and "\n" not in caught.value.reason
    return caught.value.reason


def frames_of(made: pydicom.Dataset) -> np.ndarray:
    if "FloatPixelData" in made:
        return np.frombuffer(made.FloatPixelData, np.float32).reshape(-1, made.Rows, made.Columns)
    count = int(made.NumberOfFrames) * made.Rows * made.Columns
    bits = np.unpackbits(np.frombuffer(made.PixelData, np.uint8), count=count, bitorder="little")
    return bits.reshape(-1, made.Rows, made.Columns)


def on_the_volume(made: pydicom.Dataset, case: CaseMap) -> np.ndarray:
    """What an object shows of each voxel of the volume (X, Y, Z), by nothing but its positions; NaN where nothing."""
    shared = made.SharedFunctionalGroupsSequence[0]
    along_row, along_column = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(
        float
    )
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    rows, columns = np.mgrid[: made.Rows, : made.Columns]
    shown = np.full(case.values.shape, np.nan)
    groups = made.PerFrameFunctionalGroupsSequence
    for frame, group in zip(frames_of(made), groups, strict=True):
        corner = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        lps = corner + columns[..., None] * between_columns * along_row + rows[..., None] * between_rows * along_column
        ras = np.concatenate([lps, np.ones((*rows.shape, 1))], axis=-1) @ TO_RAS
        voxels = ras @ np.linalg.inv(case.place.stored).T
        at = np.round(voxels[..., :3]).astype(int)
        assert np.abs(voxels[..., :3] - at).max() < 0.01
        inside = ((at >= 0) & (at < case.values.shape)).all(axis=-1)
        shown[tuple(at[inside].T)] = frame[inside]
    return shown


@pytest.mark.parametrize("angle", [0, 0.2])
@pytest.mark.parametrize("axes", ["LPS", "LPI", "RAS", "PSR", "LIP", "SAL"])
def test_every_voxel_of_map_and_mask_is_where_the_series_has_it(brain, tmp_path, axes, angle):
    case, image = case_of(tmp_path, brain, angle)
    files = write_series(tmp_path / "series" / "case", image, axes, order=np.random.default_rng(1))
    made = written(case, tmp_path)
    for kind, truth in (("map", case.values), ("seg", case.mask)):
        shown = on_the_volume(made[kind], case)
        assert np.array_equal(shown[case.screened], truth[case.screened])
        assert np.nansum(np.abs(shown[~case.screened])) == 0
        axial = {"S", "I"} & set(axes[2])
        assert int(made[kind].NumberOfFrames) == (len(SCREENED) if axial else len(files))
        assert not axial or np.isnan(shown[~case.screened]).all()


def test_frames_name_the_images_that_lie_there(brain, tmp_path):
    case, image = case_of(tmp_path, brain, 0.2)
    files = write_series(tmp_path / "series" / "case", image, "LPI", order=np.random.default_rng(1))
    images = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, files)}
    first = pydicom.dcmread(files[0])
    for made in written(case, tmp_path).values():
        assert made.FrameOfReferenceUID == first.FrameOfReferenceUID
        assert made.StudyInstanceUID == first.StudyInstanceUID
        assert made.PatientName == PATIENT and made.PatientID == first.PatientID
        assert made.SeriesInstanceUID != first.SeriesInstanceUID
        for group in made.PerFrameFunctionalGroupsSequence:
            (source,) = group.DerivationImageSequence[0].SourceImageSequence
            at = images[source.ReferencedSOPInstanceUID].ImagePositionPatient
            assert np.allclose(
                np.array(at, float), np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
            )


def test_dicom_validator_and_highdicom_accept_both_objects(brain, tmp_path):
    case, image = case_of(tmp_path, brain)
    write_series(tmp_path / "series" / "case", image)
    made = written(case, tmp_path)
    for kind in made:
        assert errors_of(tmp_path / "out" / f"case_{kind}.dcm") == []
    seg = segread(tmp_path / "out" / "case_seg.dcm")
    assert seg.number_of_segments == 1 and seg.segmentation_type.value == "BINARY"
    segment = seg.get_segment_description(1)
    assert (segment.algorithm_type.value, segment.algorithm_identification.name) == ("AUTOMATIC", "medad")
    assert segment.segmented_property_type.value == "52988006"
    assert seg.ContentDescription == "For research. Not a medical device."
    assert "slices 5 to 10 screened" in seg.SeriesDescription
    assert np.array_equal(seg.get_volume(combine_segments=True).array.any(axis=(1, 2)), np.ones(len(SCREENED), bool))
    mapping = ParametricMap.from_dataset(made["map"]).SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)


@pytest.mark.parametrize("keyword", ["SegmentSequence", "PatientID", "ContentLabel", "FrameOfReferenceUID"])
def test_dicom_validator_would_see_an_attribute_that_is_missing(brain, tmp_path, keyword):
    case, image = case_of(tmp_path, brain)
    write_series(tmp_path / "series" / "case", image)
    made = written(case, tmp_path)["seg"]
    delattr(made, keyword)
    made.save_as(tmp_path / "broken.dcm")
    assert any("TagMissing" in error for error in errors_of(tmp_path / "broken.dcm"))


@pytest.mark.parametrize("slices", [[], [7], list(SCREENED)])
def test_frames_are_where_medad_looked_whether_it_saw_something_or_not(brain, tmp_path, slices):
    case, image = case_of(tmp_path, brain)
    values = np.zeros(brain.shape, np.float32)
    values[..., slices] = 0.7
    case = replace(case, values=values)
    write_series(tmp_path / "series" / "case", image)
    for kind, made in written(case, tmp_path).items():
        shown = on_the_volume(made, case)
        assert np.array_equal(~np.isnan(shown), case.screened)
        assert np.array_equal(shown[case.screened], (values if kind == "map" else case.mask)[case.screened])
        assert errors_of(tmp_path / "out" / f"case_{kind}.dcm") == []


def test_a_single_slice_is_one_frame(brain, tmp_path):
    _, image = case_of(tmp_path, brain)
    case = map_of(tmp_path / "data", image, np.full(brain.shape, 0.7), range(7, 8))
    write_series(tmp_path / "series" / "case", image)
    for kind, made in written(case, tmp_path).items():
        assert int(made.NumberOfFrames) == 1
        shown = on_the_volume(made, case)
        assert np.array_equal(~np.isnan(shown), case.screened)
        assert errors_of(tmp_path / "out" / f"case_{kind}.dcm") == []


def test_a_volume_that_was_cut_out_of_the_series_is_on_its_grid(brain, tmp_path):
    whole = nib.Nifti1Image(brain, turned(0.2))
    cut = whole.slicer[4:30, 3:, 2:18]
    case = map_of(tmp_path / "data", cut, np.random.default_rng(0).random(cut.shape), SCREENED)
    write_series(tmp_path / "series" / "case", whole)
    made = written(case, tmp_path)
    assert (made["map"].Rows, made["map"].Columns) == (36, 40)
    shown = on_the_volume(made["map"], case)
    assert np.array_equal(shown[case.screened], case.values[case.screened])


def test_files_that_are_no_images_and_other_series_are_passed_over(brain, tmp_path):
    case, image = case_of(tmp_path, brain)
    own = tmp_path / "series" / "case"
    write_series(own / "study" / "flair", image)
    coarse = nib.Nifti1Image(brain[:, :, ::2].copy(), image.affine @ np.diag([1, 1, 2, 1]))
    write_series(own / "study" / "t1", coarse)
    (own / "README.txt").write_text("no image", encoding="utf-8")
    (own / "broken.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 40)
    (own / "gone").symlink_to(tmp_path / "nowhere")
    shown = on_the_volume(written(case, tmp_path)["map"], case)
    assert np.array_equal(shown[case.screened], case.values[case.screened])


def shifted(image: nib.Nifti1Image, by: tuple[float, float, float]) -> nib.Nifti1Image:
    move = np.eye(4)
    move[:3, 3] = by
    return nib.Nifti1Image(np.asarray(image.dataobj), image.affine @ move)


def tilted(image: nib.Nifti1Image, angle: float) -> nib.Nifti1Image:
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return nib.Nifti1Image(np.asarray(image.dataobj), turn @ image.affine)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("half a voxel beside", lambda image: shifted(image, (0.5, 0, 0))),
        ("a tenth of a voxel beside", lambda image: shifted(image, (0, 0, 0.1))),
        ("turned by half a degree", lambda image: tilted(image, 0.009)),
        ("slices twice as thick", lambda image: image.slicer[:, :, ::2]),
        ("every other row and column", lambda image: image.slicer[::2, ::2]),
        (
            "pixels two per cent longer",
            lambda image: nib.Nifti1Image(np.asarray(image.dataobj), image.affine * [1.02, 1, 1, 1]),
        ),
    ],
)
def test_a_series_on_another_grid_is_refused_with_both_grids(brain, tmp_path, name, change):
    case, image = case_of(tmp_path, brain, 0.2)
    write_series(tmp_path / "series" / "case", change(image))
    reason = reason_of(case, tmp_path)
    assert "has its grid: series 1.2" in reason and "voxels of" in reason and "that of the volume" in reason


def test_a_volume_with_a_shear_has_no_dicom_grid(brain, tmp_path):
    case, image = case_of(tmp_path, brain)
    write_series(tmp_path / "series" / "case", image)
    sheared = np.array(case.place.stored)
    sheared[0, 1] += 0.1
    reason = reason_of(replace(case, place=msgspec.structs.replace(case.place, affine=numbers_of(sheared))), tmp_path)
    assert "not at right angles" in reason


def test_a_series_that_is_no_whole_volume_is_refused(brain, tmp_path):
    case, image = case_of(tmp_path, brain)
    files = write_series(tmp_path / "series" / "case", image)
    files[8].unlink()
    assert "19 images are not the evenly spaced slices" in reason_of(case, tmp_path)


def test_a_series_that_ends_before_what_was_screened_is_refused(brain, tmp_path):
    case, image = case_of(tmp_path, brain)
    write_series(tmp_path / "series" / "case", image, crop=slice(0, 8))
    assert "does not reach over all voxels that were screened" in reason_of(case, tmp_path)


def test_two_series_with_the_grid_of_a_case_are_refused_by_name(brain, tmp_path):
    case, image = case_of(tmp_path, brain)
    uids = []
    for name in ("flair", "t1"):
        files = write_series(tmp_path / "series" / "case" / name, image)
        uids.append(pydicom.dcmread(files[0]).SeriesInstanceUID)
    reason = reason_of(case, tmp_path)
    assert "2 series" in reason and all(uid in reason for uid in uids)


@pytest.mark.parametrize("case_id", ["case", "..", "../series/other"])
def test_a_case_without_a_folder_of_its_own_is_listed(brain, tmp_path, case_id):
    case, image = case_of(tmp_path, brain)
    write_series(tmp_path / "series" / "other", image)
    case = replace(case, member=case.member.replace(case_id=case_id))
    assert "no DICOM series:" in reason_of(case, tmp_path)


def test_a_folder_without_images_says_so(brain, tmp_path):
    case, _ = case_of(tmp_path, brain)
    (tmp_path / "series" / "case").mkdir(parents=True)
    assert "no single-frame DICOM images with a position lie there" in reason_of(case, tmp_path)


def test_attributes_that_highdicom_refuses_are_one_line(brain, tmp_path):
    case, image = case_of(tmp_path, brain)
    for path in write_series(tmp_path / "series" / "case", image):
        one = pydicom.dcmread(path)
        del one.StudyInstanceUID
        one.save_as(path)
    assert "cannot be referred to" in reason_of(case, tmp_path)


def test_a_phantom_is_filed_with_no_patient(brain, tmp_path):
    case, image = case_of(tmp_path, brain, phantom=True)
    write_series(tmp_path / "series" / "case", image)
    assert "generated phantom" in reason_of(case, tmp_path)


def test_pseudonyms_are_not_joined_with_patients(tmp_path):
    (tmp_path / "key").write_text("", encoding="utf-8")
    settings = load_settings(None, [f"data.pseudonyms={tmp_path / 'key'}"])
    with pytest.raises(UsageError, match=r"data\.pseudonyms.*use another --format"):
        DicomObjects.of(tmp_path / "out", tmp_path, settings.data)


def test_a_run_is_exported_beside_its_series_and_cases_without_are_listed(screened, tmp_path):
    first, second, third = (f"BraTS2021_{number:05d}" for number in (0, 1, 3))
    for case_id, axes in ((first, "LPI"), (second, "PSR")):
        image = nib.load(Path(screened.data) / case_id / f"{case_id}_flair.nii.gz")
        write_series(tmp_path / "series" / case_id, image, axes)
    out = tmp_path / "out"
    words = ("--format", "dicom-seg", "--reference", str(tmp_path / "series"))
    done = medad("export", screened.run, "--out", str(out), *words)
    assert done.exit_code == 3 and "2 cases" in done.output, done.output
    assert f"{third} is not exported: no DICOM series" in done.output
    assert "BraTS2021_00002 is not exported: the run rejected it" in done.output
    assert sorted(path.name for path in out.glob("*.dcm")) == [
        f"{case_id}_{kind}.dcm" for case_id in (first, second) for kind in ("map", "seg")
    ]
    medad("export", screened.run, "--out", str(tmp_path / "nifti"))
    for case_id in (first, second):
        assert (out / f"{case_id}_seg.dcm").stat().st_mode & 0o777 == 0o600
        stored = nib.load(tmp_path / "nifti" / f"{case_id}_mask.nii.gz")
        mask = np.asarray(stored.dataobj)
        seg = segread(out / f"{case_id}_seg.dcm").get_volume(combine_segments=True)
        back = seg.to_nibabel()
        turn = nib.orientations.ornt_transform(nib.io_orientation(back.affine), nib.io_orientation(stored.affine))
        back = back.as_reoriented(turn)
        assert int(np.asarray(back.dataobj).sum()) == int(mask.sum()) > 0
        start = np.round(np.linalg.inv(stored.affine) @ back.affine[:, 3])[:3].astype(int)
        inside = tuple(slice(at, at + size) for at, size in zip(start, back.shape, strict=True))
        assert np.array_equal(np.asarray(back.dataobj), mask[inside])

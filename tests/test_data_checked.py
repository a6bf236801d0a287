"""What is read is checked: a wrong mask or a head is refused with its number, and a doubtful case gets a warning."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medad_core.config import DataSettings, load_settings
from medad_core.data.cases import EARLIER, Case
from medad_core.data.discovery import discover
from medad_core.data.inspection import check_case
from medad_core.data.phantom import generate_cohort
from medad_core.data.read import read_slices
from medad_core.errors import CaseError
from medad_core.stages.screen import screen

SETTINGS = DataSettings()
WARNED = SETTINGS.model_copy(update={"checks": "warn"})


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    generate_cohort(folder, 2, seed=3)
    return folder


@pytest.fixture
def case(phantoms, tmp_path) -> Case:
    """A phantom that a test may change."""
    first = min(path for path in phantoms.iterdir() if path.is_dir())
    shutil.copytree(first, tmp_path / "data" / first.name)
    (found,) = discover(tmp_path / "data").cases
    return found


def rewrite(path: str, change) -> None:
    image = nib.load(path)
    data = change(np.asanyarray(image.dataobj))
    nib.save(nib.Nifti1Image(data, image.affine, image.header), path)


def brain_as_mask(case: Case) -> None:
    volume = np.asanyarray(nib.load(case.volumes["flair"].path).dataobj)
    rewrite(case.mask.path, lambda mask: (volume > 0).astype(mask.dtype))


def inverted(volume: np.ndarray) -> np.ndarray:
    """Grey and white matter change places, as in a T1."""
    return np.where(volume > 0, volume.max() + 1 - volume, 0).astype(volume.dtype)


def test_a_phantom_passes_every_check(case):
    checks = read_slices(case, SETTINGS).checks
    assert {check.verdict for check in checks} == {"use"} and {"skull", "fluid"} <= {check.name for check in checks}
    assert check_case(case, SETTINGS).verdict == "use"


def test_a_mask_of_the_brain_is_refused_with_its_share(case):
    brain_as_mask(case)
    with pytest.raises(CaseError, match=r"_seg\.nii\.gz: the mask covers 1\.00 of the brain .*data\.checks=warn"):
        read_slices(case, SETTINGS)
    assert check_case(case, SETTINGS).verdict == "refuse"


def test_the_user_has_the_last_word(case):
    brain_as_mask(case)
    checks = read_slices(case, WARNED).checks
    assert "refuse" in {check.verdict for check in checks}
    finding = check_case(case, WARNED)
    assert finding.verdict == "warn" and "mask_share=1.00" in finding.checks


def test_a_volume_that_looks_like_t1_is_screened_with_a_warning(case):
    rewrite(case.volumes["flair"].path, inverted)
    case = replace(case, mask=None)
    assert "warn" in {check.verdict for check in read_slices(case, SETTINGS).checks}
    assert "check that this volume is a FLAIR" in check_case(case, SETTINGS).reason


def test_labels_of_which_none_means_tumour_are_a_warning(case):
    wrong = replace(case, tumour_labels=(9,))
    (check,) = [check for check in read_slices(wrong, SETTINGS).checks if check.verdict == "warn"]
    assert check.name == "mask_labels" and "none of them is one that means tumour (9)" in check.reason
    rewrite(case.mask.path, np.zeros_like)
    assert {check.verdict for check in read_slices(wrong, SETTINGS).checks} == {"use"}, "an empty mask has no labels"


def test_a_case_of_an_earlier_run_is_read_as_it_was(case):
    brain_as_mask(case)
    slices = read_slices(replace(case, layout=EARLIER), SETTINGS)
    assert slices.checks == () and slices.masks.any()


def test_the_pixels_of_an_earlier_run_are_not_resampled(case, tmp_path):
    for ref in (case.volumes["flair"], case.mask):
        image = nib.load(ref.path)
        affine = image.affine @ np.diag([0.8, 0.8, 1, 1])
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), affine), ref.path)
    now = read_slices(case, SETTINGS)
    before = read_slices(replace(case, layout=EARLIER), SETTINGS)
    assert before.images.shape[1:] == (240, 240) and now.images.shape[1:] == (192, 192)
    assert now.stored_spacing_mm[:2] == pytest.approx((0.8, 0.8)) and now.spacing_mm[:2] == pytest.approx((1, 1))


@pytest.mark.parametrize("folder", ["brats2021", "unlabelled", "odd", "other"])
def test_no_real_volume_is_refused_or_warned_of(shared_data: Path, folder):
    for found in discover(shared_data / folder).cases:
        assert check_case(found, SETTINGS).verdict == "use"


def test_a_doubtful_case_is_screened_and_named_in_a_file_and_on_the_page(phantoms, tmp_path):
    shutil.copytree(phantoms, tmp_path / "data")
    doubtful, _ = discover(tmp_path / "data").cases
    rewrite(doubtful.volumes["flair"].path, inverted)
    run = tmp_path / "run"
    words = ["data.first_slice=80", "data.last_slice=82", "llm.engine=transformers", "evaluate.bootstrap=0"]
    results = screen(str(tmp_path / "data"), str(run), load_settings(None, words))
    assert [case_id for case_id, _ in results.warned] == [doubtful.case_id] and results.cases == 2
    assert "check that this volume is a FLAIR" in (run / "warnings.csv").read_text()
    assert (
        "Cases with a warning" in (run / "report.html").read_text() and "doubtful" in (run / "metrics.md").read_text()
    )

"""Phantoms: brains by the numbers, read like any case, the same for the same seed, never taken for a patient."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from medad_core.config import DataSettings
from medad_core.data.discovery import discover
from medad_core.data.phantom import NOTE, draw_phantom, generate_cohort
from medad_core.data.read import read_slices
from medad_core.errors import UsageError

SMALL = (60, 60, 39)


@pytest.fixture(scope="module")
def full():
    return draw_phantom(np.random.default_rng([0, 0]), lesion=True)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantoms")
    generate_cohort(out, 8, seed=5, shape=SMALL)
    return out


def test_a_cohort_is_found_as_labelled_brats_cases(cohort):
    discovery = discover(cohort)
    assert [case.case_id for case in discovery.cases] == [f"Phantom_{n:05d}" for n in range(8)]
    assert all(case.mask for case in discovery.cases) and discovery.rejected == ()


def test_one_of_eight_is_lesion_free(cohort):
    with_lesion = [bool(np.asanyarray(nib.load(case.mask.path).dataobj).any()) for case in discover(cohort).cases]
    assert with_lesion.count(False) == 1


def test_every_file_says_that_it_is_no_patient(cohort):
    for path in cohort.glob("*/*.nii.gz"):
        assert bytes(nib.load(path).header["descrip"].tobytes()).startswith(b"medad phantom, not a patient")
    assert "not patients" in (cohort / "PHANTOM.md").read_text() and "not patients" in NOTE


def test_files_are_lps_with_millimetres(cohort):
    for path in cohort.glob("*/*.nii.gz"):
        image = nib.load(path)
        assert "".join(nib.aff2axcodes(image.affine)) == "LPS"
        assert (
            image.header.get_xyzt_units()[0] == "mm" and image.header["sform_code"] == image.header["qform_code"] == 1
        )


def test_the_same_seed_gives_the_same_files_and_another_does_not(tmp_path, cohort):
    generate_cohort(tmp_path / "again", 2, seed=5, shape=SMALL)
    generate_cohort(tmp_path / "other", 1, seed=6, shape=SMALL)
    name = "Phantom_00000/Phantom_00000_flair.nii.gz"
    assert (tmp_path / "again" / name).read_bytes() == (cohort / name).read_bytes()
    assert (tmp_path / "other" / name).read_bytes() != (cohort / name).read_bytes()


def test_a_phantom_reads_as_slices_of_a_brain(tmp_path):
    generate_cohort(tmp_path, 1, seed=1)
    (case,) = discover(tmp_path).cases
    slices = read_slices(case, DataSettings())
    assert slices.images.shape == (41, 240, 240)
    assert 0.22 < slices.brain.mean() < 0.36  # 0.25 to 0.33 in BraTS 2021


def test_labels_are_brats_labels_inside_the_brain(full):
    assert set(np.unique(full.labels)) <= {0, 1, 2, 4}
    assert (full.flair[full.labels > 0] > 0).all()


def test_oedema_is_brighter_than_healthy_tissue_and_fluid_is_dark():
    bright, dark = [], []
    for number in range(2):
        phantom = draw_phantom(np.random.default_rng([2, number]), lesion=True)
        healthy = phantom.flair[(phantom.flair > 0) & (phantom.labels == 0)]
        bright.append(np.median(phantom.flair[phantom.labels == 2]) / np.median(healthy))
        dark.append(np.percentile(healthy, 0.3) / np.median(healthy))
    assert min(bright) > 1.2 and max(dark) < 0.6


def test_lesions_vary_in_size_and_place(cohort):
    masks = [np.asanyarray(nib.load(case.mask.path).dataobj) > 0 for case in discover(cohort).cases]
    sizes = [int(mask.sum()) for mask in masks if mask.any()]
    sides = {bool(np.argwhere(mask)[:, 0].mean() > SMALL[0] / 2) for mask in masks if mask.any()}
    assert max(sizes) > 4 * min(sizes) and sides == {True, False}


def test_wrong_arguments_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="--cases"):
        generate_cohort(tmp_path / "a", 0, seed=0)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        generate_cohort(tmp_path / "file", 1, seed=0, shape=SMALL)

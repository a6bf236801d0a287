"""Layouts that people really have: the right file is taken for the right patient, and what is not taken is named."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest
from test_data_cases import touch

from medad_core.data.discovery import discover
from medad_core.data.layouts import Matcher, load_layouts
from medad_core.data.layouts.rules import Layout

MODALITY_WORDS = ("FLAIR", "T1", "T1ce", "T2")


def labelled(root: Path) -> dict[str, bool]:
    return {case.case_id: case.mask is not None for case in discover(root).cases}


def not_used(root: Path) -> set[str]:
    discovery = discover(root)
    named = {Path(passed.path).name for passed in discovery.passed_over}
    return named | {rejection.reason.split(":")[0] for rejection in discovery.rejected}


MASKS_OF_SOMETHING_ELSE = [
    "P_brain_mask",
    "P_FLAIR_bet_mask",
    "P_T1_brain_seg",
    "P_desc-brain_mask",
    "P_nnunet_pred_seg",
    "P_mask",
    "mask",
    "brain_mask",
    "P_FLAIR_seg",
    "Q_seg",
    "P_seg_prob",
    "P_space-MNI_seg",
    "rP_seg",
]


@pytest.mark.parametrize("name", MASKS_OF_SOMETHING_ELSE)
def test_a_mask_of_something_else_beside_a_flair_is_no_mask_of_the_tumour(tmp_path, name):
    touch(tmp_path, "P/P_FLAIR.nii.gz", f"P/{name}.nii.gz")
    assert labelled(tmp_path) == {"P": False} and f"{name}.nii.gz" in not_used(tmp_path)


@pytest.mark.parametrize("name", [name for name in MASKS_OF_SOMETHING_ELSE if name not in ("Q_seg", "mask")])
def test_so_it_is_in_a_folder_of_many_cases(tmp_path, name):
    touch(tmp_path, "all/P_FLAIR.nii.gz", "all/O_FLAIR.nii.gz", "all/O_seg.nii.gz", f"all/{name}.nii.gz")
    assert labelled(tmp_path) == {"P": False, "O": True} and f"{name}.nii.gz" in not_used(tmp_path)


COPIES = ["P_T1_to_FLAIR", "P_reg_FLAIR", "rP_FLAIR", "wP_FLAIR", "P_space-MNI_FLAIR", "P_FLAIR_to_MNI", "P_n4_FLAIR"]


@pytest.mark.parametrize("folder", ["P", "all"])
@pytest.mark.parametrize("name", COPIES)
def test_a_copy_of_a_volume_is_no_patient_of_its_own(tmp_path, folder, name):
    touch(tmp_path, f"{folder}/P_FLAIR.nii.gz", f"{folder}/{name}.nii.gz")
    (case,) = discover(tmp_path).cases
    assert case.case_id == "P" and case.volumes["flair"].path.endswith("/P_FLAIR.nii.gz")
    assert f"{name}.nii.gz" in not_used(tmp_path)


def test_a_copy_whose_original_is_not_there_is_named_and_not_screened(tmp_path):
    touch(tmp_path, "O_FLAIR.nii.gz", "P_T1_to_FLAIR.nii.gz")
    assert labelled(tmp_path) == {"O": False} and "P_T1_to_FLAIR.nii.gz" in not_used(tmp_path)


@pytest.mark.parametrize("key", ["channel_names", "modality"])
@pytest.mark.parametrize("order", [MODALITY_WORDS, MODALITY_WORDS[::-1], ("FLAIR",), ("T1w", "T2-FLAIR")])
def test_nnunets_channels_are_one_case(tmp_path, key, order):
    for number in range(len(order)):
        touch(tmp_path, f"imagesTr/B_001_{number:04d}.nii.gz", f"imagesTs/B_002_{number:04d}.nii.gz")
    touch(tmp_path, "labelsTr/B_001.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({key: dict(enumerate(order))}))
    assert labelled(tmp_path) == {"B_001": True, "B_002": False}
    flair = next(number for number, word in enumerate(order) if "FLAIR" in word)
    assert discover(tmp_path).cases[0].volumes["flair"].path.endswith(f"B_001_{flair:04d}.nii.gz")
    assert discover(tmp_path).rejected == ()


def test_two_channels_of_one_modality_are_refused(tmp_path):
    touch(tmp_path, "imagesTr/B_001_0000.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "FLAIR", "1": "flair"}}))
    (rejection,) = discover(tmp_path, may_be_empty=True).rejected
    assert "names flair twice" in rejection.reason


def test_a_4d_file_whose_name_ends_in_a_number_is_no_channel(tmp_path):
    touch(tmp_path, "imagesTr/BRATS_0485.nii.gz", "labelsTr/BRATS_0485.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "FLAIR", "1": "T1w"}}))
    assert labelled(tmp_path) == {"BRATS_0485": True}


@pytest.mark.parametrize(
    ("images", "labels"), [("imagesTr", "labelsTr"), ("imagesTr", "LabelsTr"), ("imagestr", "labelstr")]
)
@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_the_decathlons_labels_are_found_however_they_are_spelt(tmp_path, images, labels, extension):
    touch(tmp_path, f"{images}/B1.nii.gz", f"{labels}/B1{extension}")
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "FLAIR"}}))
    assert labelled(tmp_path) == {"B1": True}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            [
                "images_structural/UPENN-GBM-00001_11/UPENN-GBM-00001_11_FLAIR.nii.gz",
                "images_structural/UPENN-GBM-00001_11/UPENN-GBM-00001_11_T1.nii.gz",
                "images_segm/UPENN-GBM-00001_11_segm.nii.gz",
                "automated_segm/UPENN-GBM-00001_11_automated_approx_segm.nii.gz",
            ],
            {"UPENN-GBM-00001_11": True},
        ),
        (
            [
                f"BraTS2021_00000/BraTS2021_00000_{outer}.nii/00000057_{inner}.nii"
                for outer, inner in (("seg", "final_seg"), ("flair", "brain_flair"), ("t1", "brain_t1"))
            ],
            {"BraTS2021_00000": True},
        ),
        (
            ["1000011_20253_2_0/T2_FLAIR/T2_FLAIR.nii.gz", "1000011_20253_2_0/T2_FLAIR/T2_FLAIR_brain.nii.gz"],
            {"1000011_20253_2_0": False},
        ),
        (["Utrecht/0/pre/FLAIR.nii.gz", "Utrecht/0/orig/FLAIR.nii.gz", "Utrecht/0/wmh.nii.gz"], {"0": True}),
        (["S1/S1_T2_FLAIR.nii.gz", "S1/S1_seg.nii.gz", "S1/S1_T2.nii.gz"], {"S1": True}),
        (
            ["sub-05/anat/sub-05_FLAIR.nii.gz", "derivatives/x/sub-05/anat/sub-05_desc-brain_mask.nii.gz"],
            {"sub-05": False},
        ),
        (
            ["Patient-001/week-044/FLAIR.nii.gz", "Patient-001/week-044/HD-GLIO-AUTO-segmentation/native/s.nii.gz"],
            {"Patient-001_week-044": False},
        ),
        (
            ["UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_FLAIR.nii.gz", "UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_ADC.nii.gz"],
            {"UCSF-PDGM-0004": False},
        ),
    ],
)
def test_public_datasets_give_their_cases_and_nothing_is_rejected(tmp_path, files, expected):
    touch(tmp_path, *files)
    assert labelled(tmp_path) == expected and discover(tmp_path).rejected == ()


def test_the_stripped_volume_is_preferred_where_the_layout_says_so(tmp_path):
    folder = "1000011_20253_2_0/T2_FLAIR"
    touch(tmp_path, f"{folder}/T2_FLAIR.nii.gz", f"{folder}/T2_FLAIR_brain.nii.gz")
    assert discover(tmp_path).cases[0].volumes["flair"].path.endswith("T2_FLAIR_brain.nii.gz")
    assert not_used(tmp_path) == {"T2_FLAIR.nii.gz"}


@pytest.mark.parametrize(
    "files",
    [
        ["sub-05/anat/sub-05_acq-1_FLAIR.nii.gz", "sub-05/anat/sub-05_acq-2_FLAIR.nii.gz"],
        ["X/X_flair.nii.gz", "X/flair.nii.gz"],
        ["X/X_flair.nii.gz", "X/X-t2f.nii.gz"],
        ["X/X_flair.nii.gz", "X/X_seg.nii.gz", "X/X_segm.nii.gz"],
    ],
)
def test_two_candidates_for_one_role_are_refused_naming_both(tmp_path, files):
    (rejection,) = discover(touch(tmp_path, *files)).rejected
    assert all(Path(name).name in rejection.reason for name in files if "seg" in name or len(files) == 2)


@pytest.mark.parametrize("extension", [".img", ".nii.bz2", ".mgz", ".mha", ".nrrd", ".nii.xz"])
def test_a_volume_of_another_format_is_named_with_its_case(tmp_path, extension):
    discovery = discover(touch(tmp_path, "A/A_flair.nii.gz", f"H/H_flair{extension}", "H/H_flair.hdr"))
    assert [(item.case_id, f"{extension} is not read" in item.reason) for item in discovery.rejected] == [("H", True)]


def test_a_mask_of_another_format_does_not_go_without_a_word(tmp_path):
    touch(tmp_path, "A/A_flair.nii.gz", "A/A_seg.nrrd")
    assert labelled(tmp_path) == {"A": False} and not_used(tmp_path) == {"A_seg.nrrd"}


@pytest.mark.parametrize(
    ("names", "patient"),
    [
        (
            ["BraTS-GLI-00027-000/BraTS-GLI-00027-000-t2f", "BraTS-GLI-00027-001/BraTS-GLI-00027-001-t2f"],
            "BraTS-GLI-00027",
        ),
        (["sub-1/ses-1/anat/sub-1_ses-1_FLAIR", "sub-1/ses-2/anat/sub-1_ses-2_FLAIR"], "sub-1"),
        (["P1/ses-1/FLAIR", "P1/ses-2/FLAIR"], "P1"),
        (["P1/20200101/P1_flair", "P1/20210101/P1_flair"], "P1"),
        (["P1_baseline/P1_baseline_flair", "P1_followup/P1_followup_flair"], "P1"),
        (["all/P1_v1_flair", "all/P1_v2_flair"], "P1"),
        (["Patient-001/week-000-1/FLAIR", "Patient-001/week-044/FLAIR"], "Patient-001"),
        (["1000011_20253_2_0/T2_FLAIR/T2_FLAIR", "1000011_20253_3_0/T2_FLAIR/T2_FLAIR"], "1000011"),
        (
            ["UCSF-PDGM-0409_nifti/UCSF-PDGM-0409_FLAIR", "UCSF-PDGM-0409_FU001d_nifti/UCSF-PDGM-0409_FU001d_FLAIR"],
            "UCSF-PDGM-0409",
        ),
    ],
)
def test_visits_of_one_patient_share_the_patient(tmp_path, names, patient):
    cases = discover(touch(tmp_path, *(f"{name}.nii.gz" for name in names))).cases
    assert len(cases) == 2 and {case.patient for case in cases} == {patient}
    assert len({case.visit for case in cases}) == 2


def test_the_name_of_a_link_is_used_and_not_that_of_its_target(tmp_path):
    touch(tmp_path / "secret", "Mrs Miller/flair.nii.gz")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/anon1").symlink_to(tmp_path / "secret/Mrs Miller")
    assert list(labelled(tmp_path / "data")) == ["anon1"]


def test_two_forms_of_one_name_are_one_name(tmp_path):
    composed = unicodedata.normalize("NFC", "Andr\u00e9")
    decomposed = unicodedata.normalize("NFD", composed)
    touch(tmp_path, f"a/{composed}/{composed}_flair.nii.gz", f"b/{decomposed}/{decomposed}_flair.nii.gz")
    (rejection,) = discover(tmp_path).rejected
    assert rejection.case_id == composed and "found 2 times" in rejection.reason


def test_a_link_that_leads_back_does_not_make_cases_twice(tmp_path):
    touch(tmp_path, "A/A_flair.nii.gz")
    (tmp_path / "A/again").symlink_to(tmp_path)
    assert labelled(tmp_path) == {"A": False} and discover(tmp_path).rejected == ()


@pytest.mark.parametrize(
    ("link", "target", "words"),
    [
        ("A/loop", "../A", "a link to a folder that it lies in"),
        ("sub/up", "..", "a link to a folder that it lies in"),
        ("0", "A", "a link to A, which is used under that name"),
        ("sub/0", "../A", "a link to A, which is used under that name"),
        ("sub/far", "../../far", "the same folder as far, which is used"),
        ("sub/near", "../../far/C", "the same folder as far/C, which is used"),
    ],
)
def test_a_folder_is_walked_under_one_name_and_its_other_names_are_passed_over(tmp_path, link, target, words):
    """Files named flair.nii.gz take the case's name from the folder: under two names it would be two patients."""
    data = touch(tmp_path / "data", "A/flair.nii.gz", "B/flair.nii.gz", "sub/D/flair.nii.gz")
    touch(tmp_path / "far", "C/flair.nii.gz")
    (data / "far").symlink_to(tmp_path / "far")
    (data / link).symlink_to(target)
    discovery = discover(data)
    assert sorted(case.case_id for case in discovery.cases) == ["A", "B", "C", "D"] and discovery.rejected == ()
    assert [(item.path, item.reason) for item in discovery.passed_over] == [(f"{data}/{link}", words)]


def test_two_links_to_one_folder_are_one_patient(tmp_path):
    touch(tmp_path / "store", "A/flair.nii.gz")
    (tmp_path / "data").mkdir()
    for name in ("P1", "P2"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "store/A")
    discovery = discover(tmp_path / "data")
    assert [case.case_id for case in discovery.cases] == ["P1"]
    assert [item.reason for item in discovery.passed_over] == ["the same folder as P1, which is used"]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_one_volume_under_two_names_is_one_patient_and_equal_masks_may_be_one_file(tmp_path, link):
    store = touch(tmp_path / "store", "1.nii.gz", "2.nii.gz", "empty.nii.gz")
    data = tmp_path / "data"
    for name, source in (("A", "1"), ("B", "2"), ("C", "1")):
        (data / name).mkdir(parents=True)
        link(store / f"{source}.nii.gz", data / name / f"{name}_flair.nii.gz")
        link(store / "empty.nii.gz", data / name / f"{name}_seg.nii.gz")
    assert list(labelled(data)) == ["A", "B"]
    (rejection,) = discover(data).rejected
    assert rejection.case_id == "C"
    assert rejection.reason == "C_flair.nii.gz is the same file as A_flair.nii.gz of case A; keep one of them"


def test_a_volume_that_is_its_own_mask_is_refused(tmp_path):
    touch(tmp_path, "A/A_flair.nii.gz", "B/B_flair.nii.gz")
    (tmp_path / "A/A_seg.nii.gz").symlink_to("A_flair.nii.gz")
    assert list(labelled(tmp_path)) == ["B"] and "are the same file" in discover(tmp_path).rejected[0].reason


def test_labels_that_mean_tumour_are_those_of_the_layout(tmp_path):
    touch(tmp_path, *(f"{name}/{name}-t2f.nii.gz" for name in ("BraTS-GLI-00001-100", "BraTS-PED-00001-000", "X")))
    assert {case.case_id: case.tumour_labels for case in discover(tmp_path).cases} == {
        "BraTS-GLI-00001-100": (1, 2, 3),
        "BraTS-PED-00001-000": (1, 2, 3, 4),
        "X": None,
    }


def test_a_layout_of_ones_own_needs_no_code():
    mine = Layout.model_validate(
        {
            "layout": "mine",
            "title": "mine",
            "source": "here",
            "groups": {"patient": r"[A-Z]{2}\d+", "visit": r"\d{8}", "case": "{patient}/{visit}"},
            "kinds": {"flair": ["t2_dark-fluid"], "mask": ["expert"]},
            "case_id": "{patient}-{visit}",
            "patient": "{patient}",
            "visit": "{visit}",
            "paths": [{"path": "{patient}/{visit}/{kind}"}],
            "examples": [{"path": "AB12/20200101/expert.nii", "role": "mask"}],
        }
    )
    match = Matcher([*load_layouts()[:1], mine]).match("x/AB12/20200101/t2_dark-fluid")
    assert (match.role, match.case_id, match.patient, match.visit) == ("flair", "AB12-20200101", "AB12", "20200101")


@pytest.mark.parametrize(
    "names",
    [
        ["BraTS-GLI-00027-000", "BraTS-GLI-00027-001"],
        ["UPENN-GBM-00001_11", "UPENN-GBM-00001_21"],
        ["UCSF-PDGM-0409", "UCSF-PDGM-0409_FU001d"],
        ["P1_ses-1", "P1_ses-2"],
        ["P1_scan1", "P1_scan2"],
    ],
)
@pytest.mark.parametrize("form", ["{0}/flair", "{0}/{0}-flair", "imagesTr/{0}_0000", "imagesTr/{0}", "all/{0}_flair"])
def test_a_copy_of_a_dataset_in_another_layout_keeps_its_patients(tmp_path, names, form):
    touch(tmp_path, *(form.format(name) + ".nii.gz" for name in names))
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "FLAIR"}}))
    cases = discover(tmp_path).cases
    assert len(cases) == 2 and len({case.patient for case in cases}) == 1
    if names[0].startswith("BraTS"):
        assert {case.tumour_labels for case in cases} == {(1, 2, 3)}


def test_the_layout_that_is_tried_first_says_who_a_case_is_of_whatever_file_comes_first(tmp_path):
    case = "BraTS-GLI-00027-001"
    touch(tmp_path, f"{case}/{case}-t2f.nii.gz", f"{case}/{case}-lesion_mask.nii.gz")
    (found,) = discover(tmp_path).cases
    assert (found.patient, found.layout, found.tumour_labels) == ("BraTS-GLI-00027", "brats-2023", (1, 2, 3))


@pytest.mark.parametrize(
    "names",
    [
        ["P1-v1/P1-v1_flair", "P1-v2/P1-v2_flair"],
        ["all/sub-01_ses-pre_FLAIR", "all/sub-01_ses-post_FLAIR"],
        ["sub-01/ses-M00/sub-01_ses-M00_FLAIR", "sub-01/ses-M12/sub-01_ses-M12_FLAIR"],
        ["P1/P1_pre_flair", "P1_post/P1_post_flair"],
        ["P1_m0/P1_m0_flair", "P1_m6/P1_m6_flair"],
    ],
)
def test_more_ways_to_name_visits(tmp_path, names):
    cases = discover(touch(tmp_path, *(f"{name}.nii.gz" for name in names))).cases
    assert {case.patient for case in cases} <= {"P1", "sub-01"} and len({case.patient for case in cases}) == 1


def test_channels_that_are_no_modality_are_named_and_no_case_is_invented(tmp_path):
    touch(tmp_path, *(f"imagesTr/X_{number:04d}.nii.gz" for number in range(3)), "labelsTr/X.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "ADC", "1": "DWI", "2": "FLAIR"}}))
    assert labelled(tmp_path) == {"X": True} and not_used(tmp_path) == {"X_0000.nii.gz", "X_0001.nii.gz"}
    assert discover(tmp_path).cases[0].volumes["flair"].path.endswith("X_0002.nii.gz")


@pytest.mark.parametrize("words", [{"0": "MRI"}, {"0": "ADC", "1": "DWI"}])
@pytest.mark.parametrize("name", ["X_0000", "X"])
def test_a_dataset_without_a_known_channel_is_named_and_not_lost(tmp_path, words, name):
    touch(tmp_path, f"copy/imagesTr/{name}.nii.gz", "A/A_flair.nii.gz")
    (tmp_path / "copy/dataset.json").write_text(json.dumps({"modality": words}))
    reason = {item.case_id: item.reason for item in discover(tmp_path).rejected}["copy"]
    assert "names no modality that medad knows" in reason


def test_names_of_folders_above_the_data_do_not_hide_a_stranger(tmp_path):
    data = touch(tmp_path / "7/inbox", "7_flair.nii.gz", "patient 9 axial.nii.gz")
    assert [item.case_id for item in discover(data).rejected] == ["patient 9 axial"]


def test_a_mask_among_the_derivatives_belongs_to_the_raw_volume(tmp_path):
    touch(
        tmp_path,
        "sub-05/anat/sub-05_FLAIR.nii.gz",
        "derivatives/expert/sub-05/anat/sub-05_label-lesion_mask.nii.gz",
    )
    assert labelled(tmp_path) == {"sub-05": True}


def test_another_patient_in_the_folder_of_a_case_is_a_case(tmp_path):
    touch(tmp_path, "1/1_flair.nii.gz", "1/P12_flair.nii.gz")
    assert labelled(tmp_path) == {"1": False, "P12": False}

"""Discovery: each layout in the wild gives its cases, and each folder that cannot be used says why."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from medad_core.data.discovery import discover
from medad_core.data.layouts import load_layouts, the_matcher
from medad_core.data.names import patient_of, stem
from medad_core.errors import UsageError


def touch(root: Path, *names: str) -> Path:
    """Discovery reads names only, so empty files will do."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def ids(root: Path, modality: str = "flair") -> list[str]:
    return [case.case_id for case in discover(root, modality).cases]


def reasons(root: Path, modality: str = "flair", *, inbox: bool = False) -> dict[str, str]:
    rejected = discover(root, modality, may_be_empty=inbox).rejected
    by_id = {item.case_id: item.reason for item in rejected}
    assert len(by_id) == len(rejected), rejected
    return by_id


@contextmanager
def for_nobody_to_read(*names: str) -> Iterator[Path]:
    """A tree of which the last is readable to nobody; root, who reads everything, is somebody else meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        root, somebody = Path(folder), os.geteuid()
        root.chmod(0o755)
        touch(root, *names)
        (root / names[-1]).chmod(0)
        try:
            os.seteuid(somebody or 65534)
            yield root
        finally:
            os.seteuid(somebody)
            (root / names[-1]).chmod(0o700)


CASE_355 = "BraTS20_Training_355"
EXAMPLES = [(layout, example) for layout in load_layouts() for example in layout.examples]


@pytest.mark.parametrize(("layout", "example"), EXAMPLES, ids=[example.path for _, example in EXAMPLES])
def test_every_layout_explains_its_examples(layout, example):
    match = the_matcher().match(stem(example.path))
    assert (match.layout.layout, match.role) == (layout.layout, example.role)
    if example.role != "passed over":
        assert (match.case_id, match.patient, match.visit or None) == (
            example.case_id,
            example.patient,
            example.visit,
        )


def test_visits_of_one_patient_share_the_patient():
    assert patient_of("BraTS-GLI-00027-000") == patient_of("BraTS-GLI-00027-001") == "BraTS-GLI-00027"
    assert patient_of("BraTS2021_00027") == "BraTS2021_00027"


def test_brats_2021_folders_are_cases_with_all_modalities_and_mask(tmp_path):
    touch(tmp_path, *(f"B_{n}/B_{n}_{kind}.nii.gz" for n in (2, 1) for kind in ("flair", "t1", "t1ce", "t2", "seg")))
    discovery = discover(tmp_path)
    assert [case.case_id for case in discovery.cases] == ["B_1", "B_2"]
    assert sorted(discovery.cases[0].volumes) == ["flair", "t1", "t1ce", "t2"]
    assert discovery.cases[0].mask.path == str(tmp_path / "B_1/B_1_seg.nii.gz")
    assert discovery.rejected == ()


def test_uncompressed_files_are_cases(tmp_path):
    assert ids(touch(tmp_path, "B_1/B_1_flair.nii")) == ["B_1"]


def test_cases_one_level_deeper_are_found(tmp_path):
    assert ids(touch(tmp_path, "HGG/A/A_flair.nii.gz", "LGG/B/B_flair.nii.gz")) == ["A", "B"]


def test_one_flat_folder_is_grouped_by_name(tmp_path):
    discovery = discover(touch(tmp_path, "A_flair.nii.gz", "A_seg.nii.gz", "B_flair.nii.gz"))
    assert [(case.case_id, case.mask is not None) for case in discovery.cases] == [("A", True), ("B", False)]


def test_a_single_case_folder_is_a_cohort_of_one(tmp_path):
    assert ids(touch(tmp_path / "A", "A_flair.nii.gz", "A_t1.nii.gz")) == ["A"]


def test_files_that_name_no_case_take_the_folders_name(tmp_path):
    discovery = discover(touch(tmp_path, "pat0002/Flair_subtrMeanDivStd.nii.gz", "pat0002/OTMultiClass.nii.gz"))
    assert discovery.cases[0].case_id == "pat0002"
    assert discovery.cases[0].mask is not None


def test_msd_channels_follow_dataset_json(tmp_path):
    touch(
        tmp_path,
        "imagesTr/BRATS_001.nii.gz",
        "imagesTr/._BRATS_001.nii.gz",
        "labelsTr/BRATS_001.nii.gz",
        "imagesTs/BRATS_485.nii.gz",
    )
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "T1w", "1": "FLAIR"}}))
    discovery = discover(tmp_path)
    assert [(c.case_id, c.volumes["flair"].channel, c.mask is not None) for c in discovery.cases] == [
        ("BRATS_001", 1, True),
        ("BRATS_485", 1, False),
    ]


def test_channels_without_a_dataset_json_are_refused_because_their_order_is_a_guess(tmp_path):
    touch(tmp_path, "raw/imagesTr/B_0000.nii.gz", "raw/imagesTr/B_0001.nii.gz")
    with pytest.raises(UsageError, match=r"dataset\.json: missing, so the channels have no names"):
        discover(tmp_path)
    touch(tmp_path, "A/A_flair.nii.gz")
    assert ids(tmp_path) == ["A"] and "channels have no names" in reasons(tmp_path)["raw"]


def test_msd_without_dataset_json_has_the_decathlons_order_and_says_so(tmp_path):
    discovery = discover(touch(tmp_path, "imagesTr/BRATS_001.nii.gz"))
    (case,) = discovery.cases
    assert {name: ref.channel for name, ref in case.volumes.items()} == {"flair": 0, "t1": 1, "t1ce": 2, "t2": 3}
    assert "Decathlon's order" in discovery.passed_over[0].reason


def test_msd_is_found_one_level_deeper_and_from_its_image_folder(tmp_path):
    touch(tmp_path, "Task01/imagesTr/BRATS_001.nii.gz", "Task01/labelsTr/BRATS_001.nii.gz")
    (tmp_path / "Task01/dataset.json").write_text(json.dumps({"modality": {"0": "FLAIR"}}))
    for root in (tmp_path, tmp_path / "Task01/imagesTr"):
        (case,) = discover(root).cases
        assert case.mask is not None


def test_msd_with_a_dataset_json_that_is_no_json_is_a_usage_error(tmp_path):
    touch(tmp_path, "imagesTr/BRATS_001.nii.gz")
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UsageError, match=r"dataset\.json"):
        discover(tmp_path)


@pytest.mark.parametrize(
    "content", ["{", "[" * 100_000, '{"modality": ["FLAIR"]}', '{"modality": {"FLAIR": "FLAIR"}}', "[]", ""]
)
def test_an_odd_dataset_json_in_an_inbox_concerns_its_own_folder_only(tmp_path, content):
    touch(tmp_path, "A/A_flair.nii.gz", "copy/imagesTr/B.nii.gz", "copy/imagesTs/C.nii.gz", "whole/imagesTr/D.nii.gz")
    (tmp_path / "copy/dataset.json").write_text(content)
    (tmp_path / "whole/dataset.json").write_text(json.dumps({"modality": {"0": "FLAIR"}}))
    discovery = discover(tmp_path, may_be_empty=True)
    assert [case.case_id for case in discovery.cases] == ["A", "D"]
    assert (
        list(reasons(tmp_path, inbox=True)) == ["copy"]
        and "dataset.json: cannot be understood" in discovery.rejected[0].reason
    )


def test_a_dataset_json_without_end_is_not_read_to_it(tmp_path):
    touch(tmp_path, "imagesTr/B.nii.gz", "dataset.json")
    os.truncate(tmp_path / "dataset.json", 1 << 40)
    assert "cannot be understood" in reasons(tmp_path, inbox=True)[tmp_path.name]


def test_a_dataset_json_that_nobody_may_read_is_a_reason_in_an_inbox_and_a_usage_error_elsewhere():
    with for_nobody_to_read("A/A_flair.nii.gz", "copy/imagesTr/B.nii.gz", "copy/dataset.json") as root:
        assert "PermissionError" in reasons(root, inbox=True)["copy"] and ids(root / "A") == ["A"]
        with pytest.raises(UsageError, match="PermissionError"):
            discover(root / "copy")


@pytest.mark.parametrize("folder", ["B", "copy/imagesTr"])
def test_a_folder_that_nobody_may_read_is_a_rejection_of_that_folder(folder):
    with for_nobody_to_read("A/A_flair.nii.gz", f"{folder}/B_flair.nii.gz", folder) as root:
        assert ids(root) == ["A"] and "folder cannot be read" in reasons(root)[Path(folder).name]


def test_cases_beside_msd_images_are_found(tmp_path):
    touch(tmp_path, "imagesTr/B.nii.gz", "labelsTr/B.nii.gz", "dataset.json", "A/A_flair.nii.gz", "C_flair.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "FLAIR"}}))
    assert ids(tmp_path) == ["A", "B", "C"] and reasons(tmp_path) == {}


def test_hidden_files_are_no_cases(tmp_path):
    discovery = discover(
        touch(tmp_path, "A/A_flair.nii.gz", "A/._A_flair.nii.gz", "__MACOSX/A/A_flair.nii.gz", ".cache/A_flair.nii.gz")
    )
    assert [case.case_id for case in discovery.cases] == ["A"] and discovery.rejected == ()


def test_the_misnamed_mask_of_brats_2020_belongs_to_its_folders_case(tmp_path):
    (case,) = discover(touch(tmp_path, f"{CASE_355}/{CASE_355}_flair.nii", f"{CASE_355}/W39_1998.09.19_Segm.nii")).cases
    assert case.case_id == CASE_355 and case.mask.path.endswith("Segm.nii")


def test_a_mask_that_comes_before_its_volume_is_not_given_to_another_case(tmp_path):
    (case,) = discover(touch(tmp_path, "P1_flair.nii.gz", "P2_seg.nii.gz")).cases
    assert (case.case_id, case.mask) == ("P1", None) and "no flair volume" in reasons(tmp_path)["P2"]
    touch(tmp_path, "P2_flair.nii.gz")
    assert {case.case_id: case.mask is not None for case in discover(tmp_path).cases} == {"P1": False, "P2": True}


def test_a_mask_is_not_adopted_because_it_is_alone(tmp_path):
    touch(tmp_path, "pat2/A_flair.nii.gz", "pat2/seg.nii.gz", "B/B_flair.nii.gz", "B/W39_Segm.nii.gz")
    assert [(case.case_id, case.mask) for case in discover(tmp_path).cases] == [("A", None), ("B", None)]
    assert "no flair volume (found: mask)" in reasons(tmp_path)["pat2"]
    assert [Path(passed.path).name for passed in discover(tmp_path).passed_over] == ["W39_Segm.nii.gz"]


def test_derived_files_beside_a_case_are_not_cases(tmp_path):
    discovery = discover(touch(tmp_path, "U_1/U_1_FLAIR.nii.gz", "U_1/U_1_FLAIR_bias.nii.gz", "U_1/U_1_brain.nii.gz"))
    assert [case.case_id for case in discovery.cases] == ["U_1"] and discovery.rejected == ()


@pytest.mark.parametrize("odd", ["naïve père", "a'b\"c", "x y;rm -rf", "日本", "50%", "a\nb"])
def test_names_with_odd_characters_are_kept(tmp_path, odd):
    assert ids(touch(tmp_path, f"{odd}/{odd}_flair.nii.gz")) == [odd]


def test_a_name_that_is_no_utf8_is_rejected_in_printable_words(tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    touch(tmp_path, "A/A_flair.nii.gz", f"{odd}/{odd}_flair.nii.gz", f"{odd}.nii.gz")
    assert ids(tmp_path) == ["A"]
    assert {item.case_id for item in discover(tmp_path).rejected} == {r"caf\xe9"}


def test_a_duplicate_id_is_rejected_naming_both_folders_and_others_go_on(tmp_path):
    touch(tmp_path, "HGG/A/A_flair.nii.gz", "copy/A_flair.nii.gz", "HGG/B/B_flair.nii.gz")
    assert ids(tmp_path) == ["B"]
    assert "found 2 times" in reasons(tmp_path)["A"] and "copy" in reasons(tmp_path)["A"]


def test_two_files_for_one_modality_are_rejected(tmp_path):
    assert "2 files for flair" in reasons(touch(tmp_path, "A/A_flair.nii.gz", "A/A_flair.nii"))["A"]


def test_a_missing_modality_is_rejected_naming_what_is_there(tmp_path):
    touch(tmp_path, "A/A_t1.nii.gz", "A/A_seg.nii.gz", "B/B_flair.nii.gz")
    assert "no flair volume (found: mask, t1)" in reasons(tmp_path)["A"]
    assert ids(tmp_path, "t1") == ["A"]


def test_an_empty_case_folder_is_rejected(tmp_path):
    touch(tmp_path, "A/A_flair.nii.gz")
    (tmp_path / "B").mkdir()
    assert "empty folder" in reasons(tmp_path)["B"]


def test_a_file_that_names_no_modality_is_rejected_with_a_name_to_give_it(tmp_path):
    assert "X17_flair.nii.gz" in reasons(touch(tmp_path, "A_flair.nii.gz", "X17.nii.gz"))["X17"]


def test_a_file_whose_name_only_begins_like_that_of_a_case_is_not_passed_over(tmp_path):
    touch(
        tmp_path, "P1_flair.nii.gz", "P10.nii.gz", "P1_brain.nii.gz", "P1-brain.nii.gz", "P1.brain.nii.gz", "P1.nii.gz"
    )
    assert list(reasons(tmp_path)) == ["P10"]


@pytest.mark.parametrize("name", ["A/A_flair.nii.gz", "A/A_seg.nii.gz", "imagesTr/A.nii.gz", "labelsTr/A.nii.gz"])
def test_a_link_to_nothing_is_a_reason(tmp_path, name):
    touch(tmp_path, "A/A_flair.nii.gz" if name.startswith("A/") else "imagesTr/A.nii.gz", "B/B_flair.nii.gz", name)
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "FLAIR"}}))
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "gone")
    assert ids(tmp_path) == ["B"] and "a link to a file that is not there" in reasons(tmp_path)["A"]


def test_a_link_to_nothing_that_is_not_needed_and_one_to_itself_do_no_harm(tmp_path):
    touch(tmp_path, "A/A_flair.nii.gz")
    (tmp_path / "A/A_t1.nii.gz").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert ids(tmp_path) == ["A"] and "loop" in reasons(tmp_path, inbox=True)[tmp_path.name]


def test_what_may_be_a_study_and_is_no_case_is_named_once_in_an_inbox(tmp_path):
    """At the highest folder that holds nothing else, so a thousand DICOM files are one line."""
    slices = [f"IM{number:04d}" for number in range(30)]
    touch(tmp_path, "A/A_flair.nii.gz", *(f"pat7/{series}/{name}" for series in ("1", "2") for name in slices))
    touch(tmp_path, "siteB/C/C_flair.nii.gz", "siteB/pat8/scan.dcm", "upload.zip", f"deep/{'1/' * 7}2/D_flair.nii.gz")
    named = reasons(tmp_path, inbox=True)
    assert list(named) == ["deep", "pat7", "pat8", tmp_path.name] and ids(tmp_path) == ["A", "C"]
    assert (
        "IM0000, IM0001, IM0002, … (60 in all)" in named["pat7"]
        and "upload.zip" in named[tmp_path.name]
        and "2/" in named["deep"]
    )
    assert reasons(tmp_path) == {}
    passed = {Path(item.path).name: item.reason for item in discover(tmp_path).passed_over}
    assert list(passed) == [tmp_path.name, "deep", "pat7", "pat8"] and "60 in all" in passed["pat7"]


def test_notes_beside_cases_are_nothing(tmp_path):
    touch(
        tmp_path,
        "README",
        "LICENSE",
        "participants.tsv",
        "dataset_description.json",
        "derivatives/log.TXT",
        "A/.part",
        "A/A_flair.nii.gz",
        "A/A_flair.json",
        "A/A.mat",
        "A/IM0001",
    )
    assert reasons(tmp_path, inbox=True) == {}


def test_a_folder_whose_name_is_no_utf8_is_a_reason(tmp_path):
    touch(tmp_path, f"{os.fsdecode(bytes([99, 233]))}/A_flair.nii.gz", "B_flair.nii.gz")
    assert ids(tmp_path) == ["B"] and "UTF-8" in reasons(tmp_path)["A"]


def test_no_reason_holds_what_json_cannot_whatever_files_are_called(tmp_path):
    """Names that are no UTF-8 where a reason names files: two folders of one id, a dataset, a channel, strays."""
    odd = os.fsdecode(b"caf\xe9")
    touch(
        tmp_path,
        "A/A_flair.nii.gz",
        f"{odd}/A_flair.nii.gz",
        "B/B_flair.nii.gz",
        f"{odd}2/imagesTr/C_0000.nii.gz",
        f"{odd}3/imagesTr/D_0000.nii.gz",
        f"{odd}4/IM0001{odd}",
        f"E_flair_{odd}.nii.gz",
        f"F/F_flair.nii.gz{odd}",
    )
    (tmp_path / f"{odd}3/dataset.json").write_text('{"channel_names": {"0": "\\ud800"}}')
    for inbox in (False, True):
        discovery = discover(tmp_path, may_be_empty=inbox)
        texts = [text for item in discovery.rejected for text in (item.case_id, item.reason)]
        texts += [item.reason for item in discovery.passed_over]
        assert [case.case_id for case in discovery.cases] == ["B"] and any(r"caf\xe9" in text for text in texts)
        msgspec.json.encode(texts)


@pytest.mark.parametrize("role", ["flair", "seg"])
def test_what_is_no_file_is_a_reason_and_not_an_unlabelled_case(tmp_path, role, monkeypatch):
    touch(tmp_path, *(f"{name}/{name}_{kind}.nii.gz" for name in "ABCD" for kind in ("flair", "seg")))
    files = [tmp_path / f"{name}/{name}_{role}.nii.gz" for name in "ABC"]
    for file in files:
        file.unlink()
    os.mkfifo(files[0])
    files[1].symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(files[2].parent)  # the path of a socket has at most 107 bytes
        server.bind(files[2].name)
        assert ids(tmp_path) == ["D"]
        for name, kind in (("A", "a pipe"), ("B", "a device"), ("C", "a socket")):
            assert f"{name}_{role}.nii.gz: it is {kind}, no regular file" in reasons(tmp_path)[name]


def test_a_description_that_is_a_pipe_is_not_waited_for(tmp_path):
    touch(tmp_path, "data/imagesTr/A_0000.nii.gz", "B_flair.nii.gz")
    os.mkfifo(tmp_path / "data/dataset.json")
    assert ids(tmp_path) == ["B"] and "it is a pipe" in reasons(tmp_path)["data"]


def test_wrong_roots_are_usage_errors(tmp_path):
    touch(tmp_path, "empty/notes.txt", "a_file")
    with pytest.raises(UsageError, match="no such folder"):
        discover(tmp_path / "missing")
    with pytest.raises(UsageError, match="a file, not a folder"):
        discover(tmp_path / "a_file")
    with pytest.raises(UsageError, match=r"no case found; known layouts are .*decathlon"):
        discover(tmp_path / "empty")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UsageError, match="no case found"):
        discover(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"data\.modality=pet"):
        discover(tmp_path, "pet")


@pytest.mark.parametrize(
    ("folder", "count", "masks"),
    [
        ("brats2021", 12, 12),
        ("unlabelled", 2, 0),
        ("odd/suffix_names", 1, 1),
        ("odd/negative_background", 1, 1),
        ("odd/ras_orientation", 1, 1),
        ("odd/negative_values", 1, 1),
        ("odd", 4, 4),
    ],
)
def test_real_folders_are_found_whole(shared_data, folder, count, masks):
    discovery = discover(shared_data / folder)
    assert (len(discovery.cases), sum(case.mask is not None for case in discovery.cases), discovery.rejected) == (
        count,
        masks,
        (),
    )

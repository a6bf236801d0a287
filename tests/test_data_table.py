"""A table of files in place of a folder, a table of patients, and what `medad inspect` shows."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import pytest
from prefect_harness import write_case
from test_data_cases import touch

from medad_core.config import DataSettings, load_settings
from medad_core.data.inspection import check_case, inspect_cases
from medad_core.data.source import find_cases
from medad_core.data.summary import summarise
from medad_core.data.table import COLUMNS, dataset_root, read_case_table, write_case_table
from medad_core.errors import UsageError
from medad_core.run.gather import find_cohort

HEAD = "case_id,patient,visit,modality,role,path"
NARROW = load_settings(None, ["data.first_slice=60", "data.last_slice=61", "data.levels=index"]).data


def table(folder: Path, *lines: str, head: str = HEAD, name: str = "cases.csv") -> Path:
    path = folder / name
    path.write_text("\n".join((head, *lines)) + "\n")
    return path


def inspected(data: Path, settings: DataSettings = NARROW) -> list[dict[str, str]]:
    discovery = find_cases(data, settings)
    return [dict(row) for row in inspect_cases(discovery, settings, str(dataset_root(data)), check_case)]


def test_a_table_is_the_truth_whatever_the_files_are_called(tmp_path):
    path = table(
        tmp_path,
        "c1,p1,first,flair,volume,a/odd name.nii.gz",
        "c1,p1,first,,tumour mask,a/who knows.nii",
        "c2,p1,second,flair,volume,/elsewhere/x.nii.gz",
        ",,,,passed over,a/other.nii",
    )
    discovery = read_case_table(path, "flair")
    first, second = discovery.cases
    assert (first.case_id, first.patient, first.visit, first.layout) == ("c1", "p1", "first", "table")
    assert first.volumes["flair"].path == str(tmp_path / "a/odd name.nii.gz")
    assert first.mask.path == str(tmp_path / "a/who knows.nii") and second.mask is None
    assert second.patient == "p1" and second.volumes["flair"].path == "/elsewhere/x.nii.gz"
    assert [item.path for item in discovery.passed_over] == [str(tmp_path / "a/other.nii")]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["c1,p1,,flair,volume,a.nii", "c1,p1,,flair,volume,b.nii"], "line 3: case c1 has two files for flair"),
        (["c1,p1,,flair,volume,a.nii", "c1,p2,,t1,volume,b.nii"], "line 3: this line gives case c1 the patient 'p2'"),
        (["c1,,,flair,volume,a.nii"], "line 2: patient is empty"),
        (["c1,p1,,flair,volume,"], "line 2: path is empty"),
        (["c1,p1,,FLAIR,volume,a.nii"], "line 2: modality is 'FLAIR'"),
        (["c1,p1,,flair,mask,a.nii"], "line 2: role is 'mask'"),
        (["c1,p1,,flair,volume"], "line 2: has another number of fields"),
        (["c1,p1,,flair,volume,a.nii,more"], "line 2: has another number of fields"),
        (["c1,p1,,t1,volume,a.nii"], "no flair volume for c1"),
        (["c1,p1,,flair,volume,a.nii", "c2,p2,,flair,volume,./a.nii"], "line 3: ./a.nii is a file of case c1 too"),
        ([",,,,passed over,a.nii"], "no line has the role"),
    ],
)
def test_a_slip_of_the_pen_is_refused_naming_the_line(tmp_path, lines, words):
    with pytest.raises(UsageError, match=words):
        read_case_table(table(tmp_path, *lines), "flair")


def test_a_table_that_is_a_pipe_or_never_ends_is_refused_in_one_line(tmp_path):
    os.mkfifo(tmp_path / "cases.csv")
    touch(tmp_path / "data", "A_flair.nii.gz")
    with pytest.raises(UsageError, match="a file, not a folder"):
        find_cases(tmp_path / "cases.csv", NARROW)
    with pytest.raises(UsageError, match="it is a pipe, no regular file"):
        read_case_table(tmp_path / "cases.csv", "flair")
    for path in (tmp_path / "cases.csv", "/dev/zero"):
        with pytest.raises(UsageError, match=r"data\.patients=.*no regular file"):
            find_cases(tmp_path / "data", NARROW.model_copy(update={"patients": str(path)}))


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_volume_of_two_cases_is_refused_under_any_of_its_names(tmp_path, link):
    touch(tmp_path, "a.nii.gz")
    link(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    path = table(tmp_path, "c1,p1,,flair,volume,a.nii.gz", "c2,p2,,flair,volume,b.nii.gz")
    with pytest.raises(UsageError, match=r"line 3: b\.nii\.gz is a file of case c1 too"):
        read_case_table(path, "flair")


@pytest.mark.parametrize("head", [f"{HEAD},verdikt", HEAD.replace("patient,", ""), f"{HEAD},path"])
def test_unknown_missing_and_doubled_columns_are_refused(tmp_path, head):
    with pytest.raises(UsageError, match=r"wrong columns|'path' occurs twice"):
        read_case_table(table(tmp_path, head=head), "flair")


@pytest.mark.parametrize(("text", "ok"), [("1 2 4", True), ("", True), ("0", False), ("1.5", False), ("1,2", False)])
def test_tumour_labels_are_whole_numbers(tmp_path, text, ok):
    path = table(
        tmp_path, "c1,p1,,flair,volume,a.nii,", f'c1,p1,,,tumour mask,b.nii,"{text}"', head=f"{HEAD},tumour_labels"
    )
    if ok:
        expected = tuple(map(int, text.split())) or None
        assert read_case_table(path, "flair").cases[0].tumour_labels == expected
    else:
        with pytest.raises(UsageError, match="line 3: tumour_labels"):
            read_case_table(path, "flair")


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b'case_id,patient,modality,role,path\n"c1,p1'])
def test_what_is_no_csv_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "cases.csv").write_bytes(text)
    with pytest.raises(UsageError) as caught:
        read_case_table(tmp_path / "cases.csv", "flair")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["data/cases.csv", "cases.csv", "elsewhere/cases.csv"])
def test_the_table_of_inspect_gives_the_same_cohort_as_the_folder(tmp_path, place):
    (tmp_path / "elsewhere").mkdir()
    write_case(tmp_path / "data", "BraTS-GLI-00001-000", seed=1, tumour=range(60, 62))
    write_case(tmp_path / "data", "BraTS-GLI-00001-001", seed=2, tumour=range(60, 61))
    rows = inspected(tmp_path / "data")
    write_case_table(tmp_path / place, rows, tmp_path / "data")
    members = find_cohort(tmp_path / "data", NARROW).members
    again = find_cohort(tmp_path / place, NARROW)
    assert [Path(again.root, member.volume.path).resolve() for member in again.members] == [
        tmp_path / "data" / member.volume.path for member in members
    ]
    assert [(member.split, member.tumour_labels) for member in again.members] == [
        (member.split, member.tumour_labels) for member in members
    ]
    assert [member.patient_id for member in again.members] == ["BraTS-GLI-00001"] * 2
    assert again.root == str((tmp_path / place).parent)


def test_inspect_shows_shape_rule_and_verdict_of_every_volume(tmp_path):
    write_case(tmp_path, "A", seed=1, tumour=range(60, 62))
    write_case(tmp_path, "B", seed=2, tumour=range(60, 62))
    (tmp_path / "B/B_flair.nii.gz").write_bytes((tmp_path / "B/B_flair.nii.gz").read_bytes()[:9000])
    touch(tmp_path, "A/A_brain_mask.nii.gz", "C/C_t1.nii.gz", "stray.nii.gz")
    rows = inspected(tmp_path)
    assert all(set(row) <= set(COLUMNS) for row in rows)
    by_path = {row["path"]: row for row in rows}
    volume = by_path["A/A_flair.nii.gz"]
    assert (volume["role"], volume["layout"], volume["verdict"]) == ("volume", "case-folder", "use")
    assert volume["shape"] == "64x64x64" and volume["grid"] == "native" and volume["orientation"] == "LPS"
    assert by_path["A/A_seg.nii.gz"]["role"] == "tumour mask"
    assert by_path["B/B_flair.nii.gz"]["verdict"] == "refuse" and "truncated" in by_path["B/B_flair.nii.gz"]["reason"]
    assert by_path["A/A_brain_mask.nii.gz"]["role"] == "passed over" and by_path["stray.nii.gz"]["role"] == "refused"
    assert by_path["stray.nii.gz"]["verdict"] == by_path["C/C_t1.nii.gz"]["verdict"] == "refuse"


def test_the_summary_names_rules_masks_and_what_is_not_used_in_ten_lines(tmp_path):
    touch(tmp_path, *(f"B_{n}/B_{n}_{kind}.nii.gz" for n in range(3) for kind in ("flair", "seg")))
    touch(tmp_path, "B_0/B_0_brain_mask.nii.gz", "C/C_t1.nii.gz", *(f"odd{n}.nii.gz" for n in range(30)))
    lines = summarise(find_cases(tmp_path, NARROW), "flair")
    assert lines[0] == "3 cases of 3 patients, 31 refused: 3 by the layout case-folder"
    assert lines[1] == "flair from *_flair.nii.gz (3)" and lines[2] == "masks of 3 of 3 from *_seg.nii.gz (3)"
    assert lines[3].startswith("each of 3 is taken for a patient of its own")
    assert len(lines) == 10 and "medad inspect" in lines[-1]


def test_a_table_of_patients_keeps_visits_in_one_split(tmp_path):
    for number in range(6):
        write_case(tmp_path / "data", f"scan{number}", seed=number, tumour=range(60, 60 + number % 2 + 1))
    lines = [f"scan{number},P{number % 2}" for number in range(6)]
    settings = NARROW.model_copy(update={"patients": str(table(tmp_path, *lines, head="case_id,patient"))})
    splits: dict[str, set[str]] = {}
    for member in find_cohort(tmp_path / "data", settings).members:
        splits.setdefault(member.patient_id, set()).add(member.split)
    assert {patient: len(of_patient) for patient, of_patient in splits.items()} == {"P0": 1, "P1": 1}


def test_a_case_that_the_table_of_patients_does_not_name_is_refused(tmp_path):
    touch(tmp_path / "data", "A_flair.nii.gz", "B_flair.nii.gz")
    path = table(tmp_path, "A\tP1", head="participant_id\tpatient", name="participants.tsv")
    discovery = find_cases(tmp_path / "data", NARROW.model_copy(update={"patients": str(path)}))
    assert [case.patient for case in discovery.cases] == ["P1"]
    assert [item.case_id for item in discovery.rejected] == ["B"]


def test_labels_of_a_resection_cavity_are_no_tumour_where_the_layout_says_so(tmp_path):
    import nibabel as nib
    import numpy as np

    write_case(tmp_path, "X", seed=1, tumour=range(60, 62))
    mask = nib.load(tmp_path / "X/X_seg.nii.gz")
    cavity = np.where(np.asanyarray(mask.dataobj) > 0, 4, 0).astype(np.uint8)
    for case in ("BraTS-GLI-00001-000", "BraTS2021_00001"):
        shutil.copytree(tmp_path / "X", tmp_path / "data" / case)
        for kind in ("flair", "seg"):
            (tmp_path / "data" / case / f"X_{kind}.nii.gz").rename(tmp_path / f"data/{case}/{case}_{kind}.nii.gz")
        nib.save(nib.Nifti1Image(cavity, mask.affine, mask.header), tmp_path / f"data/{case}/{case}_seg.nii.gz")
    from medad_core.data.read import read_slices

    cases = {case.case_id: case for case in find_cases(tmp_path / "data", NARROW).cases}
    assert read_slices(cases["BraTS2021_00001"], NARROW).masks.any()
    assert not read_slices(cases["BraTS-GLI-00001-000"], NARROW).masks.any()


def test_the_columns_of_a_written_table_are_those_that_are_read(tmp_path):
    write_case(tmp_path, "A", seed=1, tumour=range(60, 62))
    write_case_table(tmp_path / "cases.csv", inspected(tmp_path), tmp_path)
    with open(tmp_path / "cases.csv") as stream:
        assert next(csv.reader(stream)) == list(COLUMNS)
    assert [case.case_id for case in read_case_table(tmp_path / "cases.csv", "flair").cases] == ["A"]


def test_what_was_refused_is_still_refused_when_the_table_is_given_back(tmp_path):
    touch(tmp_path, "A/A_flair.nii.gz", "H/H_flair.mgz")
    write_case_table(tmp_path / "cases.csv", inspected(tmp_path), tmp_path)
    assert [item.case_id for item in read_case_table(tmp_path / "cases.csv", "flair").rejected] == ["H"]


def test_names_with_line_breaks_and_spaces_survive_the_table(tmp_path):
    names = ["a\nb", " c ", "d\u2028e", 'f"g']
    touch(tmp_path, *(f"{name}/{name}_flair.nii.gz" for name in names))
    write_case_table(tmp_path / "cases.csv", inspected(tmp_path), tmp_path)
    paths = [case.volumes["flair"].path for case in read_case_table(tmp_path / "cases.csv", "flair").cases]
    assert sorted(paths) == sorted(str(tmp_path / f"{name}/{name}_flair.nii.gz") for name in names)


def test_a_table_of_patients_beside_a_table_of_files_is_refused(tmp_path):
    path = table(tmp_path, "c1,p1,,flair,volume,a.nii")
    with pytest.raises(UsageError, match="which says the patients itself"):
        find_cases(path, NARROW.model_copy(update={"patients": "p.csv"}))


def test_patients_that_differ_only_by_upper_case_are_one(tmp_path):
    touch(tmp_path, "P1_ses-1/P1_ses-1_flair.nii.gz", "p1_ses-2/p1_ses-2_flair.nii.gz")
    assert [case.patient for case in find_cases(tmp_path, NARROW).cases] == ["P1", "P1"]
    path = table(tmp_path, "c1,Anna,,flair,volume,a.nii", "c2,ANNA,,flair,volume,b.nii")
    assert {case.patient for case in find_cases(path, NARROW).cases} == {"Anna"}


def test_a_table_of_patients_says_dates_and_visits_each_for_itself(tmp_path):
    touch(tmp_path / "data", *(f"{name}_flair.nii.gz" for name in "ABCD"))
    lines = ["A,P,n/a,2024-01-31", "B,P,v2,2024-02-29", "C,P,v3,n/a", "D,P,,"]
    path = table(tmp_path, *lines, head="case_id,patient,visit,date")
    cases = find_cases(tmp_path / "data", NARROW.model_copy(update={"patients": str(path)})).cases
    assert [(case.visit, case.date) for case in cases] == [
        ("2024-01-31", "2024-01-31"),
        ("v2", "2024-02-29"),
        ("v3", ""),
        ("", ""),
    ]


@pytest.mark.parametrize("date", ["31.01.2024", "2024-02-30", "20240131", "2024-1-31", "=1+1"])
def test_a_date_in_another_form_is_refused_with_its_line(tmp_path, date):
    touch(tmp_path / "data", "A_flair.nii.gz")
    path = table(tmp_path, f"A,P,{date}", head="case_id,patient,date")
    with pytest.raises(UsageError, match="line 2: date is"):
        find_cases(tmp_path / "data", NARROW.model_copy(update={"patients": str(path)}))
    path = table(tmp_path, f"c1,p1,flair,volume,a.nii,{date}", head="case_id,patient,modality,role,path,date")
    with pytest.raises(UsageError, match="line 2: date is"):
        read_case_table(path, "flair")


def test_two_columns_for_the_case_are_refused(tmp_path):
    touch(tmp_path / "data", "A_flair.nii.gz")
    path = table(tmp_path, "A,sub-1,P", head="case_id,participant_id,patient")
    with pytest.raises(UsageError, match="case_id and participant_id; keep the one"):
        find_cases(tmp_path / "data", NARROW.model_copy(update={"patients": str(path)}))


def test_the_date_of_a_table_of_files_is_that_of_its_case(tmp_path):
    head = "case_id,patient,date,modality,role,path"
    path = table(tmp_path, "c1,p1,2024-01-31,flair,volume,a.nii", "c2,p1,,flair,volume,b.nii", head=head)
    assert [case.date for case in read_case_table(path, "flair").cases] == ["2024-01-31", ""]
    path = table(tmp_path, "c1,p1,2024-01-31,flair,volume,a.nii", "c1,p1,,,tumour mask,b.nii", head=head)
    with pytest.raises(UsageError, match="line 3: this line gives case c1 the date ''"):
        read_case_table(path, "flair")

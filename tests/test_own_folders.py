"""A folder of medad's results inside the data is no case, and no case is lost because of one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from prefect_harness import write_case
from typer.testing import CliRunner

from flows.cli.app import app
from medad_core.config import Settings, load_settings
from medad_core.data.discovery import discover
from medad_core.data.own_folders import MARKER, claim_folder, is_medad_folder, mark_folder
from medad_core.errors import UsageError
from medad_core.run.run import Run

pytest_plugins = ("prefect_harness",)
EARLIER = Path(__file__).parent / "versions" / "0.1.0"


@pytest.fixture
def data(tmp_path) -> Path:
    """A folder of two cases."""
    for seed in (1, 2):
        write_case(tmp_path / "data", f"BraTS2021_0000{seed}", seed)
    return tmp_path / "data"


def names(data: Path, **options) -> tuple[list[str], list[str]]:
    """Case ids, and those of what was rejected."""
    found = discover(data, **options)
    return [case.case_id for case in found.cases], [rejection.case_id for rejection in found.rejected]


def test_the_first_run_and_every_later_one_inside_the_data_have_the_same_cases(data):
    expected = names(data)
    out = data / "RUN"
    out.mkdir()  # as the user, or a killed command, may have left it
    for _ in range(2):
        run = Run.open(str(data), str(out), Settings())
        assert [member.case_id for member in run.cohort.members] == expected[0]
        assert [(item.path, item.reason) for item in run.discovery.passed_over] == [
            (str(out), "a folder of medad's results")
        ]
    assert names(data) == expected == names(data, may_be_empty=True)


def test_an_empty_folder_that_is_not_medads_is_still_rejected(data):
    (data / "study").mkdir()
    assert names(data)[1] == ["study"]


@pytest.mark.parametrize("kind", ["run", "cohort"])
def test_results_of_an_earlier_version_inside_the_data_are_passed_over(data, kind):
    expected = names(data, may_be_empty=True)
    shutil.copytree(EARLIER / kind, data / "results")
    (data / "results" / MARKER).unlink(missing_ok=True)
    assert is_medad_folder(data / "results")
    assert names(data, may_be_empty=True) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cohort.json", json.dumps({"root": "/d", "members": []}, indent=1)),
        ("run.json", json.dumps({"settings": 'a: "1"\n', "data_root": "/d"})),
        ("study.json", json.dumps({"root": "/d", "fingerprint": {}})),
        ("ledger.json", json.dumps({"inbox": "/é", "looked": "now"})),
    ],
)
def test_one_file_of_medad_is_enough_and_one_of_that_name_by_others_is_not(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert is_medad_folder(tmp_path)
    for other in ("{}", "[]", "", '{"members": [], "root": "/d"}', '{"root": "/d", "name": "ours"}'):
        (tmp_path / name).write_text(other, encoding="utf-8")
        assert not is_medad_folder(tmp_path), other


def test_weights_are_known_by_both_files(tmp_path):
    (tmp_path / "card.json").touch()
    assert not is_medad_folder(tmp_path)
    (tmp_path / "decoder.safetensors").touch()
    assert is_medad_folder(tmp_path)


def test_a_marker_that_is_a_link_makes_no_file_elsewhere(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / MARKER).symlink_to(tmp_path / "elsewhere")
    mark_folder(str(tmp_path / "run"))
    assert not (tmp_path / "elsewhere").exists() and (tmp_path / "run" / MARKER).is_file()


def test_a_folder_that_is_not_there_is_none(tmp_path):
    assert not is_medad_folder(tmp_path / "missing")


def test_the_data_itself_is_refused_under_every_name_of_it(data, tmp_path):
    (tmp_path / "link").symlink_to(data)
    before = sorted(data.rglob("*"))
    for out in (data, f"{data}/", f"{data}/BraTS2021_00001/..", tmp_path / "link", f"file://{data}"):
        with pytest.raises(UsageError, match="is the folder of the data itself; choose another"):
            claim_folder(data, str(out))
    assert sorted(data.rglob("*")) == before


def test_a_folder_of_cases_inside_the_data_is_refused_and_stays_a_folder_of_cases(data):
    for out in (data / "BraTS2021_00001", data / "BraTS2021_00001" / "BraTS2021_00001_flair.nii.gz"):
        with pytest.raises(UsageError, match="lies inside the data and holds other files; choose a new folder"):
            claim_folder(data, str(out))
    assert len(names(data)[0]) == 2


def test_no_folder_above_the_data_is_marked(data):
    expected = names(data.parent)
    claim_folder(data, str(data.parent))
    mark_folder(str(data.parent))
    assert not is_medad_folder(data.parent) and names(data.parent) == expected


def test_an_unfinished_training_of_an_earlier_version_goes_on(data):
    (data / "W" / "_work").mkdir(parents=True)
    claim_folder(data, str(data / "W"))
    assert is_medad_folder(data / "W")


def test_a_run_that_an_earlier_version_made_in_its_data_goes_on(tmp_path):
    for name in ("data", "run"):
        shutil.copytree(EARLIER / name, tmp_path, dirs_exist_ok=True)
    claim_folder(tmp_path, str(tmp_path))


@pytest.mark.parametrize("words", [("screen",), ("train",), ("reproduce",)])
def test_the_command_says_so_in_one_line_and_makes_nothing(data, words):
    before = sorted(data.rglob("*"))
    result = CliRunner().invoke(app, [*words, str(data), "--out", str(data)])
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("medad:")]
    assert "is the folder of the data itself" in line and "Traceback" not in result.output
    assert sorted(data.rglob("*")) == before


def test_missing_data_leave_no_folder_behind(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        Run.open(str(tmp_path / "missing"), str(tmp_path / "missing" / "RUN"), load_settings(None, []))
    assert not (tmp_path / "missing").exists()


def test_a_path_that_is_not_utf8_is_refused_in_one_line(data, tmp_path):
    odd = os.fsdecode(bytes(tmp_path) + b"/m\xfcnchen")
    shutil.copytree(data, odd)
    for words in ([odd, "--out", "RUN"], [str(data), "--out", f"{odd}-run"], [odd, "--cohort", "C"]):
        result = CliRunner().invoke(app, ["screen", *words])
        assert result.exit_code == 2 and "the path is not valid UTF-8; rename" in result.stderr, result.output
    assert not Path(f"{odd}-run").exists()

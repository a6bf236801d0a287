"""Who may read what medad writes: `store.mode`."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from prefect_harness import WORDS, write_case
from test_cli import medad

from medad_core.config import Settings, load_settings
from medad_core.permissions import set_mode
from medad_core.run.fingerprints import run_fingerprint
from medad_core.stages.screen import screen
from medad_core.store.files import make_folder, new_file, write_text

MODES = {"private": (0o600, 0o700), "group": (0o640, 0o750), "umask": (0o664, 0o775)}


def modes_below(folder: Path) -> tuple[set[int], set[int]]:
    """Modes of files and of folders, the folder itself included."""
    found = [folder, *folder.rglob("*")]
    return tuple(
        {stat.S_IMODE(path.stat().st_mode) for path in found if path.is_dir() == is_dir} for is_dir in (False, True)
    )


@pytest.fixture
def data(tmp_path) -> Path:
    os.umask(0o002)
    write_case(tmp_path / "data", "BraTS2021_00007", seed=7)
    return tmp_path / "data"


def test_tables_and_sheets_of_a_command_are_read_by_those_it_names(data, tmp_path):
    words = ["--out", tmp_path / "cases.csv", "--sheet", tmp_path / "sheet.png", *WORDS, "store.mode=group"]
    assert medad("inspect", data, *words).exit_code == 0
    assert medad("phantom", tmp_path / "phantoms", "--cases", 1).exit_code == 0
    for name in ("cases.csv", "sheet.png"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640, name
    assert modes_below(tmp_path / "phantoms") == ({0o600}, {0o700})


def test_every_file_of_a_run_is_private(data, tmp_path):
    settings = load_settings(None, [*WORDS, "evaluate.bootstrap=10"])
    screen(str(data), str(tmp_path / "run"), settings)
    assert modes_below(tmp_path / "run") == ({0o600}, {0o700})


def test_the_mode_is_no_part_of_a_fingerprint():
    assert run_fingerprint(Settings()) == run_fingerprint(load_settings(None, ["store.mode=group"]))


@pytest.mark.parametrize(("mode", "modes"), MODES.items())
def test_files_and_folders_have_the_mode_that_was_said(tmp_path, mode, modes):
    os.umask(0o002)
    set_mode(mode)
    make_folder(f"{tmp_path}/a/b")
    with new_file(f"{tmp_path}/a/b/private") as path:
        os.close(os.open(path, os.O_CREAT, 0o600))  # as some libraries make their files
    write_text(f"{tmp_path}/a/file", "")
    assert modes_below(tmp_path / "a") == ({modes[0]}, {modes[1]})


def test_as_the_umask_says_is_that_of_the_start_of_the_process(tmp_path):
    os.umask(0o002)
    for mode in ("private", "umask"):
        set_mode(mode)
        (tmp_path / mode).mkdir()
    assert [stat.S_IMODE((tmp_path / mode).stat().st_mode) for mode in ("private", "umask")] == [0o700, 0o775]

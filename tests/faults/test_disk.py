"""A disk that is full, or turns read-only, under a real run: one line, its exit code, and the same rows afterwards."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from disturbed import ends, same_rows, screening, start, temporary_files, until

from medad_core.run.rejected import QUARANTINED

pytest_plugins = ("prefect_harness",)


def remount(folder: Path, options: str) -> bool:
    return subprocess.run(["mount", "-o", f"remount,{options}", folder], capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path):
    """A filesystem of its own, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", folder], capture_output=True).returncode:
        pytest.skip("filesystems can be mounted by root only, and not in every container")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def one_line(output: str, *texts: str) -> None:
    (line,) = [line for line in output.splitlines() if line.startswith("medad:")]
    for text in texts:
        assert text in line, line


def leave_room(disk: Path, room: int) -> None:
    """Fill the disk up to so many bytes."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    filler.write_bytes(bytes(free - room))


def test_a_disk_that_fills_up_or_turns_read_only_stops_the_run_and_the_same_command_goes_on_when_it_is_well(
    screened, server, disk
):
    run = disk / "run"
    filler = disk / "filler"
    slices = sum(file.stat().st_size for file in (Path(screened.run) / "slices").rglob("*"))
    # A page each for the marker of the folder and the inputs of the first part, which a tmpfs rounds up to.
    leave_room(disk, slices // 2 + 2 * os.sysconf("SC_PAGE_SIZE"))
    one_line(ends(start(screening(screened, run), server=server), 1), "No space left on device")
    assert temporary_files(run) == [] and len(list((run / "slices" / "_parts").iterdir())) == 1
    filler.unlink()

    # A disk of its own: one on which the lock of the run is open is not remounted on demand.
    answers = run / "answers"
    answers.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", answers], check=True)
    process = start(screening(screened, run), server=server)
    # The remount is refused while a file is being written.
    until(lambda: (answers / "_parts" / "00000.json").exists() and remount(answers, "ro"), process)
    one_line(ends(process, 1), "Read-only file system")
    assert remount(disk, "ro")
    one_line(ends(start(screening(screened, run), server=server), 2), "cannot write results", "Read-only file system")
    assert remount(disk, "rw") and remount(answers, "rw")

    ends(start(screening(screened, run), server=server), 3)
    same_rows(screened, run)
    assert QUARANTINED not in (run / "rejected.csv").read_text()

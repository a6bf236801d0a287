"""One command at a time writes to a run: real processes on one folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prefect_harness import WORDS, write_case
from test_cli import expect_line, medad

from medad_core.config import load_settings
from medad_core.errors import StoreError
from medad_core.run.run import Run
from medad_core.store.lock import NAME, holder, locked

HOLD = """
import sys
from medad_core.config import load_settings
from medad_core.errors import MedadError
from medad_core.run.run import Run
try:
    with Run.held(sys.argv[1], sys.argv[2], load_settings(None, sys.argv[3:])):
        print("held", flush=True)
        sys.stdin.read()
except MedadError as error:
    print(type(error).__name__, error, flush=True)
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


@pytest.fixture
def data(tmp_path) -> Path:
    write_case(tmp_path / "data", "BraTS2021_00007", seed=7)
    return tmp_path / "data"


def begin(data: Path, run: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLD, str(data), str(run), *WORDS]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)


def test_of_two_commands_the_second_is_refused_by_name_and_a_dead_one_holds_nothing(data, tmp_path):
    run = tmp_path / "run"
    both = [begin(data, run), begin(data, run)]
    try:
        said = {process.stdout.readline().strip(): process for process in both}
        first = said.pop("held")
        (refusal,) = said
        name = f"{run} is in use by process {first.pid} on {os.uname().nodename} since "
        assert refusal.startswith(f"LockedError {name}")
        for command in (["screen", data, "--out", run, *WORDS], ["evaluate", run]):
            expect_line(medad(*command), 1, name, "; wait until it ends")
        assert medad("status", run).exit_code == 0
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert holder(run) is None
        with Run.held(str(data), str(run), load_settings(None, WORDS)):
            assert f"process {os.getpid()} " in holder(run)
        assert holder(run) is None
    finally:
        for process in both:
            process.kill()
            process.communicate()


def test_a_lock_that_is_a_link_is_neither_followed_nor_emptied(data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("content")
    (tmp_path / "run" / NAME).symlink_to(tmp_path / "precious")
    held = Run.held(str(data), str(tmp_path / "run"), load_settings(None, WORDS))
    with pytest.raises(StoreError, match="cannot lock"), held:
        pass
    with pytest.raises(StoreError, match="cannot lock"), locked(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "content"


def test_a_pipe_in_place_of_a_lock_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / NAME)
    for use in (lambda: holder(tmp_path), lambda: locked(tmp_path).__enter__()):
        with pytest.raises(StoreError, match="it is a pipe, no regular file"):
            use()

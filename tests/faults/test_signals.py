"""SIGTERM, Ctrl-C and SIGKILL in the middle of a part that takes an hour.

The command ends within seconds with its exit code, leaves nothing behind, and run again it makes the same rows.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx
import pytest
from disturbed import SOON_S, children_of, ends, gone, same_rows, screening, start, temporary_files, until

pytest_plugins = ("prefect_harness",)


def held_at(case_id: str, words: list, run: Path, server: str | None, **environment: str):
    """The command, standing still in the middle of a part, and the processes that it started."""
    held = run.parent / f"held-{case_id}"
    process = start(words, ("hold", case_id, held), server, **environment)
    until(lambda: held.exists() and held.read_text() != "", process)
    assert temporary_files(run), "it stands still in the middle of no part"
    return process, children_of(process)


def ends_soon(process, code: int, word: str) -> None:
    started = time.monotonic()
    assert f"medad: {word}; the same command goes on where it stopped" in ends(process, code, timeout=60)
    assert time.monotonic() - started < SOON_S


def states(server: str, name: str) -> list[str]:
    runs = httpx.post(f"{server}/flow_runs/filter", json={"flow_runs": {"name": {"like_": name}}}).json()
    return [run["state_name"] for run in runs]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> str:
    """The folder of Prefect's database for commands with a temporary server."""
    return str(tmp_path_factory.mktemp("home"))


def test_signals_stop_a_command_within_seconds_and_the_same_command_goes_on(screened, server, tmp_path, home):
    run = tmp_path / "signalled"

    process, children = held_at("BraTS2021_00000", screening(screened, run), run, None, PREFECT_HOME=home)
    assert any("flows.api_server" in " ".join(child.cmdline()) for child in children)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everything that the command started
    ends_soon(process, 130, "interrupted")
    until(lambda: gone(children), deadline_s=SOON_S)
    assert temporary_files(run) == []

    process, children = held_at("BraTS2021_00001", ["slices", run, *screened.words], run, None, PREFECT_HOME=home)
    process.kill()
    until(lambda: gone(children), deadline_s=SOON_S)

    whole = f"screen-{Path(screened.data).name}"  # others of this name were killed; the server takes them for running
    before = states(server, whole).count("Running")
    words = screening(screened, run, "flow.runner=process", "flow.max_workers=2")
    process, children = held_at("BraTS2021_00003", words, run, server)
    process.terminate()
    time.sleep(1)
    process.terminate()  # as a worker and its group do; the second one must cut nothing short
    ends_soon(process, 143, "terminated")
    until(lambda: gone(children), deadline_s=SOON_S)
    assert temporary_files(run) == []
    assert states(server, "slices-signalled") == ["Crashed"]
    assert "Crashed" in states(server, whole)
    assert states(server, whole).count("Running") == before, "the server takes a run that has ended for running"

    ends(start(screening(screened, run), server=server), 3)
    same_rows(screened, run)

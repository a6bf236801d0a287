"""A screening that is killed in each of its stages, and gives the rows of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from medad_core.store import PART_STAGES, stage_of

pytest_plugins = ("prefect_harness",)
DEADLINE_S = 180.0


def start(screened, run: Path, server: str) -> subprocess.Popen:
    """The real command, in a process of its own. It uses the session's server: a killed one leaves no other behind."""
    environment = {**os.environ, "PREFECT_API_URL": server, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "flows.cli", "screen", screened.data, "--out", str(run), *screened.words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_when(file: Path, process: subprocess.Popen) -> None:
    """SIGKILL as soon as `file` is there."""
    deadline = time.monotonic() + DEADLINE_S
    while not file.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, f"{file} did not appear"
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_killed_in_every_stage_and_run_again_it_gives_the_same_rows(screened, server, tmp_path):
    run = tmp_path / "run"
    for name in PART_STAGES:
        # The first part of the stage is recorded, the others are not.
        kill_when(run / name / "_parts" / "00000.json", start(screened, run, server))
        assert not (run / name / "_manifest.json").exists(), f"{name} was finished before it could be killed"
    kill_when(run / "predictions.parquet", start(screened, run, server))
    assert not (run / "report.html").exists()

    last = start(screened, run, server)
    output = last.communicate(timeout=DEADLINE_S)[0]
    assert last.returncode == 3, output
    for name in PART_STAGES:
        assert stage_of(str(run), name).read().equals(stage_of(screened.run, name).read()), name
    pd.testing.assert_frame_equal(
        pd.read_parquet(run / "predictions.parquet"), pd.read_parquet(screened.outcome.predictions)
    )
    assert (run / "metrics.parquet").read_bytes() == (Path(screened.run) / "metrics.parquet").read_bytes()
    assert (run / "rejected.csv").read_bytes() == (Path(screened.run) / "rejected.csv").read_bytes()

"""A screening that is killed in each of its stages, and gives the rows of one that was not."""

from __future__ import annotations

import signal
from pathlib import Path

from disturbed import ends, same_rows, screening, start, until
from prepared import Life

from medad_core.store import PART_STAGES

pytest_plugins = ("prefect_harness",)


def kill_when(file: Path, process: Life) -> None:
    """SIGKILL as soon as `file` is there."""
    until(file.exists, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_killed_in_every_stage_and_run_again_it_gives_the_same_rows(screened, server, tmp_path):
    run = tmp_path / "run"
    for name in PART_STAGES:
        # The first part of the stage is recorded, the others are not.
        kill_when(run / name / "_parts" / "00000.json", start(screening(screened, run), server=server))
        assert not (run / name / "_manifest.json").exists(), f"{name} was finished before it could be killed"
    kill_when(run / "predictions.parquet", start(screening(screened, run), server=server))
    assert not (run / "report.html").exists()

    ends(start(screening(screened, run), server=server), 3)
    same_rows(screened, run)
    assert (run / "metrics.parquet").read_bytes() == (Path(screened.run) / "metrics.parquet").read_bytes()
    assert (run / "rejected.csv").read_bytes() == (Path(screened.run) / "rejected.csv").read_bytes()

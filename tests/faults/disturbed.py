"""What the tests of faults share: the real command in a process with a fault in it, and what must hold afterwards."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
from prepared import Life, start_prepared

from medad_core.store import PART_STAGES, stage_of

HERE = Path(__file__).parent
DEADLINE_S = 180.0
SOON_S = 10.0  # how long a signal may take


def start(words: list, fault: tuple = ("none", ""), server: str | None = None, **environment: str) -> Life:
    """`medad` with `words`, in a session of its own; without `server` it starts a temporary one.

    faulty.py describes `fault`.
    """
    variables = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    if server:
        variables["PREFECT_API_URL"] = server
    variables |= {"PYTHONPATH": str(HERE.parents[1]), **environment}
    return start_prepared(HERE / "faulty.py", [*fault, "--", *words], variables)


def screening(screened, run: Path, *words: str) -> list:
    return ["screen", screened.data, "--out", run, *screened.words, *words]


def ends(process: Life, code: int, timeout: float = DEADLINE_S) -> str:
    """Wait for the end with this exit code; returns the output."""
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == code, process.output
    assert "Traceback" not in process.output, process.output
    return process.output


def until(condition: Callable[[], bool], process: Life | None = None, deadline_s: float = DEADLINE_S) -> None:
    """Wait for it; `process` must live as long."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert process is None or process.poll() is None, process.output
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def children_of(process: Life) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def gone(processes: list[psutil.Process]) -> bool:
    return not any(_lives(process) for process in processes)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two questions
        return False


def temporary_files(run: Path) -> list[Path]:
    return list(Path(run).rglob("*.tmp"))


def same_rows(screened, run: Path) -> None:
    """Every stage and the predictions are, in every column, those of the run that nothing disturbed.

    No key is there twice, no temporary file is left.
    """
    for name in PART_STAGES:
        assert stage_of(str(run), name).read().equals(stage_of(screened.run, name).read()), name
    rows = pd.read_parquet(Path(run) / "predictions.parquet")
    pd.testing.assert_frame_equal(rows, pd.read_parquet(screened.outcome.predictions))
    assert not rows.duplicated(["case_id", "slice_index"]).any()
    assert temporary_files(run) == []

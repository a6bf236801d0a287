"""`RUN/run.json`: the settings and the data a run was started with, for people and for commands that come later."""

from __future__ import annotations

from medad_core.errors import StoreError
from medad_core.store import files
from medad_core.store.records import RunInfo


def write_run_info(run: str, info: RunInfo) -> None:
    """Write `RUN/run.json`, replacing an earlier one. Raises StoreError."""
    files.make_folder(run)
    files.write_bytes(files.join(run, "run.json"), info.to_json())


def read_run_info(run: str) -> RunInfo:
    """Raises StoreError where `run` is no run of medad, or its note is damaged."""
    data = files.read_bytes(files.join(run, "run.json"))
    if data is None:
        raise StoreError(f"{run} is not a run of medad (no run.json); make one with `medad screen DATA --out {run}`")
    try:
        return RunInfo.from_json(data)
    except ValueError as error:
        raise StoreError(f"{run}/run.json is damaged; run `medad screen DATA --out {run}` again") from error

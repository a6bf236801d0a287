"""Cases that several threads read: the files are those of one thread, and no more volumes are in memory."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from prefect_harness import WORDS, break_case, settle, write_case

from medad_core import stopping
from medad_core.config import load_settings
from medad_core.errors import InputError, Stopped
from medad_core.run.run import Run
from medad_core.stages import slices
from medad_core.surroundings.processes import usable_cores

CASES = [f"BraTS2021_{number:05d}" for number in range(6)]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("cohort")
    for number, case_id in enumerate(CASES):
        write_case(root, case_id, seed=number)
    break_case(root, CASES[1])
    settle()
    return str(root)


def read(data: str, out: Path, threads: int) -> Run:
    """A run whose slices are made, in parts of four and of two cases."""
    settings = load_settings(None, [*WORDS, "data.cases_per_part=4", f"models.threads={threads}"])
    with Run.held(data, str(out), settings) as run:
        slices.run_parts(run, [part.number for part in slices.plan(run).parts])
    return run


def files_of(run: Run) -> dict[str, object]:
    """What the stage wrote: bytes of tables, and records without the seconds that they took."""
    root = Path(run.uri)
    found: dict[str, object] = {path.name: path.read_bytes() for path in (root / "slices").glob("*.parquet")}
    for path in [*(root / "slices" / "_parts").iterdir(), *Path(run.inputs.uri).iterdir()]:
        record = json.loads(path.read_bytes())
        for name in ("seconds", "seal"):  # the seal is a hash, also of the seconds
            record.pop(name, None)
        found[str(path.relative_to(root))] = json.dumps(record)  # in the order in which it was written
    return found


def test_several_threads_write_the_same_files_as_one(data, tmp_path):
    one, several = (files_of(read(data, tmp_path / str(threads), threads)) for threads in (1, 3))
    assert len(one) == 6 and several == one
    failed = json.loads(str(one["slices/_parts/00000.json"]))["failed"]
    assert [item["key"] for item in failed] == [CASES[1]]


def test_no_more_volumes_are_read_at_once_than_there_are_threads(data, tmp_path, monkeypatch):
    real, busy, most = slices.read_slices, [], []
    both = threading.Barrier(2)

    def watched(case, settings):
        busy.append(case.case_id)
        both.wait(60)  # two are here: a third would wait in vain, and break the barrier
        most.append(len(busy))
        both.wait(60)
        try:
            return real(case, settings)
        finally:
            busy.remove(case.case_id)

    monkeypatch.setattr(slices, "read_slices", watched)
    read(data, tmp_path / "run", threads=2)
    assert len(most) == len(CASES) and max(most) == 2


@pytest.mark.parametrize("error", [Stopped, InputError])
def test_a_stop_and_a_disk_that_fails_end_the_part_and_its_threads(data, tmp_path, monkeypatch, error):
    real = slices.read_slices

    def disturbed(case, settings):
        if case.case_id == CASES[2] and error is Stopped:
            stopping.request_stop()
        elif case.case_id == CASES[2]:
            raise InputError("the filesystem failed")
        return real(case, settings)

    monkeypatch.setattr(slices, "read_slices", disturbed)
    try:
        with pytest.raises(error):
            read(data, tmp_path / "run", threads=2)
    finally:
        stopping.withdraw_request()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("medad-case")]
    run = Run.reopen(str(tmp_path / "run"))
    assert run.stage("slices").records() == {} and not list((tmp_path / "run").rglob("*.tmp*"))
    monkeypatch.undo()
    assert files_of(read(data, tmp_path / "run", 2)) == files_of(read(data, tmp_path / "again", 1))


def test_a_worker_reads_with_its_share_of_the_cores():
    def threads(*words: str) -> int:
        return slices.reading_threads(load_settings(None, words))

    cores = usable_cores()
    assert threads() == cores and threads(f"flow.max_workers={2 * cores}") == 1
    assert threads("models.threads=3") == 3
    assert threads("flow.runner=ray", "flow.ray_workers.slices.cpus=5") == 5
    assert threads("flow.runner=ray", "flow.ray_workers.slices.cpus=0.5") == 1

"""A process killed at any moment leaves a stage that the same command completes to the same rows.

The file is its own victim: run as a script it performs a small stage in forked processes, each of which sends itself
SIGKILL at one step. Steps lie before and after every call that changes the disk, halfway through every small file, and
between two patients of a part.
"""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from medad_core.errors import StoreError
from medad_core.store import Item, Stage

REPOSITORY = Path(__file__).parents[2]
SCHEMA = pa.schema(
    [
        pa.field("case_id", pa.string(), nullable=False),
        pa.field("slice_index", pa.int32(), nullable=False),
        pa.field("value", pa.binary(), nullable=False),
    ]
)
PARTS = [("a", "b"), ("c", "bad"), ("d",)]
FAILED = Item(key="bad", reason="truncated volume")


def rows(names, step=lambda label: None):
    for name in names:
        step(f"rows of {name}")
        if name != FAILED.key:
            values = [name.encode() * 1000] * 4
            yield pa.table({"case_id": [name] * 4, "slice_index": range(4), "value": values}).cast(SCHEMA)


def work(run: str, step=lambda label: None) -> list[int]:
    """The command: prepare, make what is pending, finish. Returns the parts it made."""
    stage = Stage(run, "slices", SCHEMA)
    plan = stage.prepare({"scaling": "percentile"}, PARTS)
    made = stage.pending()
    for number in made:
        inputs = plan.parts[number].inputs
        failed = [FAILED] if FAILED.key in inputs else []
        stage.write_part(number, rows(inputs, step), failed=failed, seconds=0)
    stage.finish()
    return made


def trace_disk(step) -> None:
    """Call `step(label)` before and after everything that changes the disk, and halfway through each small file."""

    def traced(name):
        original = getattr(os, name)

        def call(*args, **kwargs):
            label = f"{name} {_subject(name, args)}"
            step(f"before {label}")
            try:
                return original(*args, **kwargs)
            finally:
                step(f"after {label}")

        setattr(os, name, call)

    for name in ("replace", "fsync", "unlink", "mkdir"):
        traced(name)

    def write_in_halves(path, data):
        with open(path, "wb") as stream:
            stream.write(data[: len(data) // 2])
            stream.flush()
            step("halfway through a small file")
            stream.write(data[len(data) // 2 :])

    Path.write_bytes = write_in_halves


def _subject(name, args) -> str:
    if name == "fsync":
        return "folder" if stat.S_ISDIR(os.fstat(args[0]).st_mode) else "file"
    return Path(args[1] if name == "replace" else args[0]).name


def damage(run: str) -> None:
    """Flip a bit of a recorded part of a finished stage."""
    file = Path(run) / "slices" / "part-00001.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def victim(root: Path, scenario: str) -> None:
    """Run the command once for each step, killed at it, in `root/0`, `root/1`, …; `root/steps.json` has the steps."""
    work(str(root / "finished"))  # also does once, before any fork, what pyarrow does at its first call
    damage(str(root / "finished"))
    start = root / "finished" if scenario == "repair" else None
    steps = _in_fork(root / "whole", start, None)
    for number in range(len(steps)):
        _in_fork(root / str(number), start, number)
    (root / "steps.json").write_text(json.dumps(steps))


def _in_fork(run: Path, start: Path | None, kill_at: int | None) -> list[str]:
    if start is not None:
        shutil.copytree(start, run)
    pid = os.fork()
    if pid == 0:
        seen = []

        def step(label):
            if len(seen) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(label)

        try:
            write_bytes = Path.write_bytes
            trace_disk(step)
            work(str(run), step)
            write_bytes(run / "steps", json.dumps(seen).encode())
            os._exit(0)
        finally:
            os._exit(1)  # an error must not run on as a second copy of the parent
    _, status = os.waitpid(pid, 0)
    if kill_at is None:
        assert status == 0
        return json.loads((run / "steps").read_text())
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return []


@pytest.fixture(scope="module", params=["fresh", "repair"])
def killed(request, tmp_path_factory):
    """(scenario, root, steps): one run folder for each step at which a process was killed."""
    root = tmp_path_factory.mktemp(request.param)
    command = [sys.executable, __file__, str(root), request.param]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    return request.param, root, json.loads((root / "steps.json").read_text())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> pa.Table:
    run = str(tmp_path_factory.mktemp("uninterrupted"))
    work(run)
    return Stage(run, "slices", SCHEMA).read()


def test_the_kills_cover_every_kind_of_step(killed):
    scenario, _, steps = killed
    expected = [
        "replace 00001.json",
        "replace part-00001.parquet",
        "replace _manifest.json",
        "fsync folder",
        "fsync file",
    ]
    expected += (
        ["mkdir slices", "replace _plan.json"]
        if scenario == "fresh"
        else ["unlink _manifest.json", "unlink 00001.json"]
    )
    for step in expected:
        assert f"before {step}" in steps and f"after {step}" in steps
    assert "rows of bad" in steps and "halfway through a small file" in steps


def test_nothing_claims_completion_before_its_data_after_a_kill(killed):
    scenario, root, steps = killed
    for number, step in enumerate(steps):
        stage = Stage(str(root / str(number)), "slices", SCHEMA)
        if stage.find_plan() is None:
            with pytest.raises(StoreError):
                stage.pending()
            continue
        untouched = scenario == "repair" and 1 in stage.records() and stage.pending() == [1]
        if not untouched:  # before the repair begins the damaged part still has its old record
            assert set(stage.pending()).isdisjoint(stage.records()), step
            assert stage.manifest() is None or stage.pending() == [], step


def test_the_same_command_completes_a_killed_run_to_the_same_rows(killed, uninterrupted):
    _, root, steps = killed
    for number, step in enumerate(steps):
        run = str(root / str(number))
        stage = Stage(run, "slices", SCHEMA)
        pending = stage.pending() if stage.find_plan() is not None else [0, 1, 2]
        assert work(run) == pending, step
        assert stage.read().equals(uninterrupted), step
        assert stage.require_finished().failed == (FAILED,), step
        assert list(Path(run).rglob("*.tmp")) == [], step
        assert work(run) == [], step


def test_a_file_is_synced_before_and_its_folder_after_each_rename_and_records_follow_data(tmp_path):
    program = f"""
import json, sys
sys.path.insert(0, {str(REPOSITORY / "tests" / "faults")!r})
import test_store_kill as victim
seen = []
victim.trace_disk(seen.append)
victim.work({str(tmp_path)!r})
print(json.dumps([step for step in seen if step.startswith("before")]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    steps = [step.removeprefix("before ") for step in json.loads(done.stdout)]
    renames = [n for n, step in enumerate(steps) if step.startswith("replace")]
    assert all((steps[n - 1], steps[n + 1]) == ("fsync file", "fsync folder") for n in renames)
    order = [name for n in range(3) for name in (f"part-{n:05d}.parquet", f"{n:05d}.json")]
    assert [steps[n].removeprefix("replace ") for n in renames] == ["_plan.json", *order, "_manifest.json"]


if __name__ == "__main__":
    victim(Path(sys.argv[1]), sys.argv[2])

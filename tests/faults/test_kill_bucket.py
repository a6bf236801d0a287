"""A screening from bucket to bucket that is killed in every stage: the same command goes on to the same rows."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pandas as pd
from buckets import BUCKET, Asked, upload, variables
from prefect_harness import WORDS, write_case
from prepared import Life, start_prepared

from medad_core.store import Stage, objects, open_stages
from medad_core.store.files import read_bytes

pytest_plugins = ("buckets", "prefect_harness")
ROOT = f"s3://{BUCKET}"
RUN = f"{ROOT}/run"
# The request at which each life ends, before the store has answered it.
ENDS = ("slices/part-00001", "maps/_parts/00001", "answers/_manifest", "predictions.")
PLAIN = Path(__file__).with_name("plain.py")


def screening(data: str, run: str, url: str) -> Life:
    environment = {**os.environ, **variables(url), "PYTHONPATH": str(Path(__file__).parents[2])}
    return start_prepared(PLAIN, [data, run, *WORDS], environment)


class Killed:
    """A process that is killed when it writes the object with `end` in its name."""

    def __init__(self, end: str) -> None:
        self.end = end
        self.begun = threading.Event()

    def begin(self, process: Life) -> None:
        self.process = process
        self.begun.set()

    def disturb(self, asked: Asked) -> str | None:
        if asked.method != "PUT" or self.end not in asked.path:
            return None
        self.begun.wait(10)
        self.process.send_signal(signal.SIGKILL)
        return "cut"


def whole(stages: dict[str, Stage]) -> None:
    """Whatever counts can be read, at any moment."""
    for stage in stages.values():
        if stage.find_plan() is not None:
            for number, record in stage.records().items():
                assert stage.read_part(number).num_rows == record.rows


def test_killed_in_every_stage_a_run_in_a_bucket_is_completed_to_the_same_rows(s3, s3_port, tmp_path):
    for number in range(2):
        write_case(tmp_path / "data", f"BraTS2021_{number:05d}", seed=number)
    upload(s3_port, tmp_path / "data", "data")
    for end in ENDS:
        killed = Killed(end)
        s3.disturb = killed.disturb
        killed.begin(screening(f"{ROOT}/data", RUN, s3.url))
        assert killed.process.wait(300) == -signal.SIGKILL, f"it was not killed at {end}"
        s3.disturb = lambda asked: None
        whole(open_stages(RUN))
    last = screening(f"{ROOT}/data", RUN, s3.url)
    assert last.wait(300) == 0, last.output
    assert screening(str(tmp_path / "data"), str(tmp_path / "run"), s3.url).wait(300) == 0
    there = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    (tmp_path / "here.parquet").write_bytes(read_bytes(f"{RUN}/predictions.parquet") or b"")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "here.parquet"), there)
    names = {name for name, _ in objects.list_tree(RUN)}
    assert not [name for name in names if ".lease" in name or name.endswith((".tmp", ".begun"))]

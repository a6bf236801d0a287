"""A run of nights on one inbox, killed at seeded random moments, against the same nights undisturbed.

Every night something comes, changes, goes, or arrives broken. Then the screening is started and killed (SIGKILL) a
number of times before it may end. All the while the cohort's predictions have to be sound. After each night they have
to be those of the undisturbed cohort. `MEDAD_KILLS` sets the number of kills.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
from prefect_harness import WORDS, break_case, write_case
from prepared import start_prepared

from medad_core.inbox.folder import CohortFolder

pytest_plugins = ("prefect_harness",)
KILLS = int(os.environ.get("MEDAD_KILLS", "20"))
SEED = 20261123
KILLS_A_NIGHT = 12
# The latest kill, as a share of an undisturbed life: one that goes on where another stopped ends in that time.
LATEST = 0.7
LIFE_S = 180.0  # a life that lasts longer hangs
READ_S = 0.5
CAMPAIGN_WORDS = [*WORDS, "inbox.settle_s=0", "data.cases_per_part=2"]


class Screener:
    """Starts screenings that can be killed; what they print is kept in `log`."""

    def __init__(self, server: str) -> None:
        root = str(Path(__file__).parents[2])
        self.environment = {**os.environ, "PREFECT_API_URL": server, "PYTHONPATH": root}
        self.environment["PREFECT_LOGGING_LEVEL"] = "ERROR"
        self.log = ""

    def live(self, inbox: Path, cohort: Path, kill_after_s: float | None) -> tuple[int, float]:
        """Exit code (-9 where it was killed) and seconds lived."""
        started = time.monotonic()
        words = [inbox, cohort, *CAMPAIGN_WORDS]
        life = start_prepared(Path(__file__).with_name("campaign.py"), words, self.environment)
        timer = threading.Timer(LIFE_S if kill_after_s is None else kill_after_s, _kill, [life.pid])
        timer.start()
        code = life.wait()
        timer.cancel()
        self.log += life.output
        return code, time.monotonic() - started


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):  # it may have ended a moment before
        os.kill(pid, signal.SIGKILL)


def change_inbox(night: int, inbox: Path) -> None:
    """What comes into the inbox before a night, the same for both cohorts."""
    for number in range(2):
        seed = 10 * night + number
        write_case(inbox, f"BraTS2021_{seed:05d}", seed=seed, tumour=range(60 + number, 64))
    if night % 3 == 1:
        shutil.rmtree(inbox / "BraTS2021_00000")
        write_case(inbox, "BraTS2021_00000", seed=1000 + night)
    if night % 3 == 2:
        write_case(inbox, f"BraTS2021_{10 * night + 9:05d}", seed=night)
        break_case(inbox, f"BraTS2021_{10 * night + 9:05d}")
        shutil.rmtree(inbox / f"BraTS2021_{10 * night - 10:05d}", ignore_errors=True)


def copied(inbox: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(inbox, target))


def commits(cohort: Path) -> list[dict]:
    """The records of the committed batches, times aside."""
    return [batch.replace(opened="", committed="") for batch in CohortFolder(cohort).batches()]


class Reader(threading.Thread):
    """Somebody who reads the cohort's predictions all the time.

    From the first commit on they exist and are whole: rows of committed batches, every key once.
    """

    def __init__(self, cohort: Path) -> None:
        super().__init__(daemon=True)
        self.cohort = cohort
        self.reads = 0
        self.fault: Exception | None = None
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(READ_S) and self.fault is None:
            try:
                self.read()
            except Exception as error:
                self.fault = error

    def read(self) -> None:
        path = self.cohort / "predictions.parquet"
        if self.reads == 0 and not path.exists():
            return
        rows = pd.read_parquet(path)
        committed = {batch.number for batch in CohortFolder(self.cohort).batches()}
        assert len(rows) > 0 and not rows.duplicated(["case_id", "slice_index"]).any()
        assert set(rows["batch"]) <= committed
        assert (rows.groupby("case_id")["slice_index"].apply(list).map(tuple) == (60, 61, 62)).all()
        self.reads += 1

    def stop(self) -> int:
        self.over.set()
        self.join()
        if self.fault is not None:
            raise self.fault
        return self.reads


def test_killed_at_random_moments_nothing_is_lost_done_twice_or_half_shown(server, tmp_path, capsys):
    screener = Screener(server)
    moments = random.Random(SEED)
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    calm = tmp_path / "calm"
    struck = tmp_path / "struck"
    kills = lives = night = 0
    reader = Reader(struck)
    reader.start()
    stages: dict[str, int] = {}
    while kills < KILLS:
        change_inbox(night, inbox)
        night += 1
        code, seconds = screener.live(inbox, calm, None)
        assert code == 0, screener.log
        for _ in range(min(KILLS_A_NIGHT, KILLS - kills)):
            code, _ = screener.live(inbox, struck, moments.uniform(0, LATEST * seconds))
            lives += 1
            assert code in (0, -signal.SIGKILL), screener.log
            if code == 0:
                break
            kills += 1
            assert reader.fault is None, reader.fault
            newest = _newest_work(struck)
            stages[newest] = stages.get(newest, 0) + 1
        code, _ = screener.live(inbox, struck, None)
        lives += 1
        assert code == 0, screener.log
        pd.testing.assert_frame_equal(
            pd.read_parquet(struck / "predictions.parquet"), pd.read_parquet(calm / "predictions.parquet")
        )
        assert commits(struck) == commits(calm)
    reads = reader.stop()
    assert CohortFolder(struck).ledger().cases == CohortFolder(calm).ledger().cases
    assert not [path for path in struck.rglob("*") if path.name.endswith((".tmp", ".begun")) or path.name == ".new"]
    with capsys.disabled():
        print(f"\n{kills} kills in {lives} lives over {night} nights, killed with the newest work in: {stages}")
        print(f"{reads} looks at the predictions meanwhile; rows lost, doubled or changed: 0")


def _newest_work(cohort: Path) -> str:
    """The folder or file that the killed process wrote last."""
    files = [path for path in cohort.rglob("*") if path.is_file() and path.name != ".lock"]
    if not files:
        return "start"
    newest = max(files, key=lambda path: path.stat().st_mtime_ns).relative_to(cohort)
    return newest.parts[2] if len(newest.parts) > 3 else newest.name

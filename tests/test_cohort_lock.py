"""One command at a time writes to a cohort: a real process that holds it."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from medad_core.errors import StoreError
from medad_core.inbox.folder import CohortFolder
from medad_core.store.lock import LockedError, holder, locked

HOLD = """
import sys, time
from pathlib import Path
from medad_core.store.lock import locked
with locked(Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(60)
"""


@pytest.fixture
def cohort(tmp_path) -> CohortFolder:
    return CohortFolder(tmp_path / "cohort")


@pytest.fixture
def other(cohort):
    """Another process that holds the cohort."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(Path(cohort.uri))], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_command_is_refused_by_name_and_a_dead_one_holds_nothing(cohort, other):
    with pytest.raises(LockedError, match=f"process {other.pid} on .*--wait"), locked(Path(cohort.uri)):
        pass
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert holder(Path(cohort.uri)) is None
    with locked(Path(cohort.uri)):
        assert f"process {os.getpid()}" in holder(Path(cohort.uri))
    assert holder(Path(cohort.uri)) is None


def test_a_command_that_waits_gets_its_turn(cohort, other):
    threading.Timer(0.3, other.kill).start()
    started = time.monotonic()
    with locked(Path(cohort.uri), wait=True):
        assert time.monotonic() - started > 0.25


def test_whoever_only_looks_refuses_nobody(cohort):
    with locked(Path(cohort.uri)):
        pass
    with (Path(cohort.uri) / ".lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert holder(Path(cohort.uri)) is None, "one who looks is taken for a holder"
        threading.Timer(0.3, looking.close).start()
        with locked(Path(cohort.uri)):
            pass


def test_who_may_not_write_sees_the_holder_all_the_same():
    with tempfile.TemporaryDirectory() as folder, locked(Path(folder)):
        Path(folder).chmod(0o755)
        (Path(folder) / ".lock").chmod(0o444)
        somebody = os.geteuid()
        try:
            os.seteuid(somebody or 65534)  # root may write everywhere
            assert f"process {os.getpid()}" in holder(Path(folder))
        finally:
            os.seteuid(somebody)


def test_a_lock_that_leads_to_a_file_of_others_is_refused_and_the_file_stays(cohort, tmp_path):
    theirs = tmp_path / "theirs.csv"
    theirs.write_text("precious")
    Path(cohort.uri).mkdir()
    (Path(cohort.uri) / ".lock").symlink_to(theirs)
    with (
        pytest.raises(StoreError, match=r"cannot lock .*: it is a link, no regular file"),
        locked(Path(cohort.uri)),
    ):
        pass
    assert theirs.read_text() == "precious"


def test_a_lock_that_is_a_pipe_is_refused_and_not_waited_for(cohort):
    Path(cohort.uri).mkdir()
    os.mkfifo(Path(cohort.uri) / ".lock")
    with pytest.raises(StoreError, match="a pipe"), locked(Path(cohort.uri)):
        pass
    with pytest.raises(StoreError, match="a pipe"):
        holder(Path(cohort.uri))


def test_a_forked_child_does_not_keep_the_lock(cohort):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    try:
        with locked(Path(cohort.uri)):
            child.start()
        assert child.is_alive() and holder(Path(cohort.uri)) is None
    finally:
        child.kill()
        child.join()


def test_a_disk_too_full_to_name_the_holder_is_one_line_and_leaves_no_lock(cohort):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(StoreError, match="cannot lock"), locked(Path(cohort.uri)):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert holder(Path(cohort.uri)) is None

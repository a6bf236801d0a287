"""`medad serve`: real servers and workers, a flow that a worker runs, and nothing left running however it ends."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterName,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling
from prefect.workers.process import ProcessWorker
from prefect_harness import WORDS, write_case
from test_notify import Hook
from test_screen_cohort import without_brain

from flows.cli.groups import Group
from flows.orchestrator import check_auth_string
from flows.pools import TEMPLATE
from medad_core.errors import UsageError
from medad_core.media import markdown_text
from medad_core.store.lock import holder

pytest_plugins = ("prefect_harness",)
NIGHTLY = "screen-cohort/nightly-ward"
POOL = "medad-cpu"
CLI = [sys.executable, "-m", "flows.cli"]
COHORT_WORDS = [*WORDS, "inbox.settle_s=0"]
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
if not POSTGRES and shutil.which("postgres"):
    POSTGRES = [Path(shutil.which("postgres"))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition: Callable[[], object], seconds: float = 180) -> object:
    """What the condition returns, once it is true."""
    limit = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < limit, "it did not come in time"
        time.sleep(0.2)
    return value


@dataclass
class Served:
    """A `medad serve` in a folder of its own, outside of the repository."""

    process: subprocess.Popen
    url: str
    folder: Path
    environment: dict[str, str]

    @property
    def log(self) -> str:
        """All that it has printed so far."""
        return "".join((self.folder / name).read_text() for name in ("out", "err"))

    @property
    def port(self) -> int:
        return int(self.url.split(":")[2].split("/")[0])

    @property
    def auth_file(self) -> Path:
        return self.folder / "home" / "medad-server.auth"

    @property
    def auth_string(self) -> str:
        return self.auth_file.read_text().strip()

    def medad(self, *words: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*CLI, *map(str, words)],
            cwd=self.folder,
            env={**self.environment, "PREFECT_API_URL": self.url},
            capture_output=True,
            text=True,
        )

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def serving(folder: Path, **variables: str) -> Iterator[Served]:
    folder.mkdir(exist_ok=True)
    port = free_port()
    path = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    environment = {
        **inherited,
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_WORKER_HEARTBEAT_SECONDS": "2",
        "PYTHONPATH": os.pathsep.join(path),
        **variables,
    }
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        process = subprocess.Popen(
            [*CLI, "serve", "--port", str(port)], cwd=folder, env=environment, stdout=out, stderr=err
        )
        served = Served(process, f"http://127.0.0.1:{port}/api", folder, environment)
        try:
            until(lambda: "Ctrl-C" in served.log or process.poll() is not None)
            assert process.poll() is None, served.log
            yield served
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(30)


def words_of(process: psutil.Process) -> list[str]:
    """The command line of a process; none of one that has ended meanwhile, as those of past runs do at any time."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # a zombie is one too
        return []


def all_gone(family: list[psutil.Process], seconds: float) -> bool:
    return not psutil.wait_procs(family, timeout=seconds)[1]


@pytest.fixture(scope="module")
def hook():
    with Hook(200) as hook:
        yield hook


@pytest.fixture(scope="module")
def served(tmp_path_factory, hook):
    with (
        serving(tmp_path_factory.mktemp("served") / "ours", MEDAD_WEBHOOK=hook.url) as served,
        temporary_settings({PREFECT_API_URL: served.url, PREFECT_API_AUTH_STRING: served.auth_string}),
    ):
        yield served


@pytest.fixture(scope="module")
def deployed(served):
    """The nightly screening of a cohort of one good case and one without brain, run once by the worker."""
    write_case(served.folder / "inbox", "BraTS2021_00000", seed=0)
    without_brain(served.folder / "inbox", "BraTS2021_00009")
    folders = ["--inbox", "inbox", "--cohort", "ward"]
    schedule = ["--cron", "0 2 * * *", "--timezone", "Europe/Berlin"]
    done = served.medad("deploy", *folders, *schedule, *COHORT_WORDS)
    assert done.returncode == 0, done.stderr
    run = start()
    until(lambda: state_of(run).is_final())
    return done, flow_run(run)


def start():
    with get_client(sync_client=True) as client:
        return client.create_flow_run_from_deployment(client.read_deployment_by_name(NIGHTLY).id).id


def flow_run(run):
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run)


def state_of(run):
    return flow_run(run).state


def test_a_deployment_is_listed_with_its_next_run_in_its_own_zone(deployed):
    listed = next(line for line in deployed[0].stdout.splitlines() if NIGHTLY in line)
    assert "medad-cpu" in listed and "0 2 * * * Europe/Berlin" in listed and " 02:00 CE" in listed
    assert f"{NIGHTLY}: no worker" not in deployed[0].stderr


def test_a_worker_runs_the_installed_flow_in_any_folder(served, deployed):
    assert deployed[1].state.is_completed(), deployed[1].state
    assert (served.folder / "ward" / "predictions.parquet").stat().st_size > 0
    assert deployed[1].name.startswith("screen-ward-") and {"medad", "cohort:ward"} <= set(deployed[1].tags)


def test_what_the_core_logs_in_a_worker_reaches_the_server(deployed):
    with get_client(sync_client=True) as client:
        (stage,) = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=["slices-ward-00001"]))
        )
        logs = until(lambda: client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[stage.id]))), 30)
    assert [log.name for log in logs if "BraTS2021_00009 is left out" in log.message] == ["medad_core.stages.parts"]


def test_the_summary_of_a_night_names_what_was_rejected_and_the_webhook_only_counts(deployed, hook):
    with get_client(sync_client=True) as client:
        (shown,) = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["summary-ward"])))
    assert "1 cases screened" in shown.data and "empty brain" in shown.data
    assert markdown_text("BraTS2021_00009") in shown.data
    (body,) = hook.bodies
    assert (body["event"], body["name"]) == ("finished", "ward")
    assert (body["counts"]["cases_screened"], body["counts"]["cases_rejected"]) == (1, 1)
    assert "BraTS" not in str(body)


def test_the_webhook_is_in_no_file_and_on_no_server(served, deployed, hook):
    with get_client(sync_client=True) as client:
        assert hook.url not in str(client.read_deployment_by_name(NIGHTLY).parameters) + str(deployed[1].parameters)
    files = [path for path in (served.folder / "ward").rglob("*") if path.is_file()]
    assert files and not [path for path in files if hook.url.encode() in path.read_bytes()]


def test_a_port_in_use_is_one_clear_line(served, deployed):
    command = [*CLI, "serve", "--port", str(served.port)]
    done = subprocess.run(command, env=served.environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "cannot listen on port" in done.stderr and "--port" in done.stderr


def test_a_server_logs_everything_once(served, deployed):
    complaints = [line for line in served.log.splitlines() if "| ERROR" in line or "| WARNING" in line]
    assert len(complaints) < 20 and "Traceback" not in served.log, served.log


def test_only_the_user_of_the_server_may_speak_to_it(served, deployed):
    assert stat.S_IMODE(served.auth_file.stat().st_mode) == 0o600
    assert httpx.get(f"{served.url}/health").status_code == 200
    for refused in ({}, {"Authorization": "Basic " + b64encode(b"medad:guessed").decode()}):
        assert httpx.get(f"{served.url}/version", headers=refused).status_code == 401
        assert httpx.post(f"{served.url}/flow_runs/filter", json={}, headers=refused).status_code in (401, 403)
    check_auth_string(served.url)
    with (
        temporary_settings(restore_defaults={PREFECT_API_AUTH_STRING}),
        pytest.raises(UsageError, match=r"PREFECT_API_AUTH_STRING: the Prefect server at .* refuses it"),
    ):
        check_auth_string(served.url)


def test_the_authentication_string_is_on_no_command_line_and_nowhere_printed(served, deployed):
    lines = [" ".join(words_of(process)) for process in served.family()]
    assert lines and not [line for line in lines if served.auth_string in line]
    assert served.auth_string not in served.log and str(served.auth_file) in served.log
    assert served.auth_string not in deployed[0].stdout + deployed[0].stderr


def test_no_page_of_another_origin_or_of_another_name_reaches_the_server(served, deployed):
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for origin, allowed in ((served.url.removesuffix("/api"), True), ("http://example.org", False)):
        answer = httpx.options(f"{served.url}/flow_runs/filter", headers={"Origin": origin, **asked})
        assert ("access-control-allow-origin" in answer.headers) is allowed
    for host, status in (("localhost", 200), ("127.0.0.1:4200", 200), ("medad.example.org", 400)):
        assert httpx.get(f"{served.url}/health", headers={"Host": host}).status_code == status


def test_who_starts_a_run_gives_it_no_command_and_no_environment(served, deployed):
    """Neither now, nor with a run that waits since its pool had Prefect's own template."""
    written = served.folder / "written"
    wishes = {"command": f"touch {written}", "env": {"MEDAD_CACHE": str(written)}, "working_dir": str(written)}
    with get_client(sync_client=True) as client:
        nightly = client.read_deployment_by_name(NIGHTLY)
        for name, value in wishes.items():
            with pytest.raises(PrefectHTTPStatusError, match="422"):
                client.create_flow_run_from_deployment(nightly.id, job_variables={name: value})
        open_to_all = ProcessWorker.get_default_base_job_template()
        client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=open_to_all, is_paused=True))
        run = client.create_flow_run_from_deployment(nightly.id, job_variables={"command": wishes["command"]}).id
        assert served.medad("deploy").returncode == 0
        client.update_work_pool(POOL, WorkPoolUpdate(is_paused=False))
        until(lambda: state_of(run).is_final())
        assert client.read_work_pool(POOL).base_job_template == TEMPLATE
    assert state_of(run).is_completed() and not written.exists(), state_of(run)


def engine_of(served) -> psutil.Process | None:
    """The process of the flow that runs."""
    return next((process for process in served.family() if "prefect.engine" in " ".join(words_of(process))), None)


def test_a_run_that_is_cancelled_ends_within_seconds_and_the_next_goes_on(served, deployed):
    for number in range(1, 9):
        write_case(served.folder / "inbox", f"BraTS2021_{number + 10:05d}", seed=number)
    ward = served.folder / "ward"
    run = start()
    until((ward / "batches" / "00002" / "slices" / "_plan.json").exists)
    engine = engine_of(served)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, Cancelling())
    started = time.monotonic()
    until(lambda: all_gone([engine], 0), 60)
    assert time.monotonic() - started < 30, "Prefect asks for cancelled runs every ten seconds"
    until(lambda: state_of(run).is_cancelled(), 30)
    assert holder(ward) is None and not [*ward.rglob("*.tmp"), *ward.rglob("*.begun")]


def test_sigterm_ends_server_worker_and_the_flow_that_runs_within_seconds(served, deployed):
    """The last test of this server. The run goes on where the cancelled one stopped."""
    run = start()
    until(lambda: holder(served.folder / "ward") and state_of(run).is_running())
    family = served.family()
    assert any("prefect.engine" in " ".join(words_of(process)) for process in family)
    assert state_of(run).is_running()
    started = time.monotonic()
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(20) == 0
    assert all_gone(family, 1) and time.monotonic() - started < 15
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", served.port)) != 0
    with closing(sqlite3.connect(served.folder / "home" / "prefect.db")) as database:
        states = dict(database.execute("select id, state_type from flow_run where state_type != 'SCHEDULED'"))
    assert states[str(run)] == "CRASHED" and set(states.values()) == {"COMPLETED", "CANCELLED", "CRASHED"}


@contextmanager
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL of its own. It refuses to run as root."""
    binaries = POSTGRES[-1].parent
    port = free_port()
    user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.getuid() == 0 else []
    with tempfile.TemporaryDirectory() as folder:
        if user:
            shutil.chown(folder, "nobody", "nogroup")
        data = ["-D", f"{folder}/data"]
        create = [*user, binaries / "initdb", *data, "-U", "medad", "-A", "trust"]
        subprocess.run(create, check=True, capture_output=True, cwd="/")
        ready = [binaries / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
        words = [*user, binaries / "postgres", *data, "-p", str(port), "-h", "127.0.0.1", "-k", ""]
        process = subprocess.Popen(words, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until(lambda: subprocess.run(ready, capture_output=True).returncode == 0, 60)
            yield f"medad@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


@pytest.mark.skipif(not POSTGRES, reason="no PostgreSQL here: apt-get install postgresql")
def test_postgresql_keeps_what_is_deployed_and_a_worker_that_dies_ends_the_server(tmp_path):
    with (
        postgres() as database,
        serving(tmp_path / "served", PREFECT_API_DATABASE_CONNECTION_URL=f"postgresql+asyncpg://{database}") as served,
    ):
        assert "postgresql+asyncpg://medad@127.0.0.1" in served.log
        assert not (tmp_path / "served" / "home" / "prefect.db").exists()
        done = served.medad("deploy", "--inbox", "in", "--cohort", "ward")
        assert done.returncode == 0, done.stdout + done.stderr
        assert NIGHTLY in done.stdout and " 02:00 UTC" in done.stdout
        query = ["-At", f"postgresql://{database}", "-c", "select name from deployment order by name"]
        rows = subprocess.run([POSTGRES[-1].parent / "psql", *query], capture_output=True, text=True)
        assert rows.stdout.split() == ["cases", "nightly-ward", "report", "tables", "verify-ward"], rows.stderr
        family = served.family()
        next(process for process in family if "worker" in words_of(process)).kill()
        assert served.process.wait(30) == 1 and all_gone(family, 1)
        assert "the worker of medad-cpu ended by itself, with exit code -9" in served.log and "started!" in served.log


def test_a_server_that_cannot_start_shows_why(tmp_path):
    environment = {
        **os.environ,
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_API_DATABASE_CONNECTION_URL": "mysql://nowhere/x",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [*CLI, "serve", "--port", str(free_port())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 1 and "the server ended by itself" in done.stderr and "mysql" in done.stderr, done.stderr


def test_a_group_whose_lines_cannot_be_printed_goes_on(tmp_path):
    def print_nowhere(_) -> None:
        raise OSError(errno.EIO, "Input/output error")  # a terminal after logout

    flood = f"""
for _ in range(300):
    print("12:00:00.000 | INFO", "x" * 1000)
open({str(tmp_path / "done")!r}, "w")
"""
    group = Group("x", [sys.executable, "-c", flood], os.environ, print_nowhere)
    try:
        until((tmp_path / "done").exists, 30)
    finally:
        group.end(1, lambda: False)


def test_a_group_ends_although_its_keeper_was_killed(tmp_path):
    keeper = """
import os, time
from flows.cli.groups import Group
group = Group("x", ["sh", "-c", "sleep 300 & sleep 300"], os.environ, print)
print(group.process.pid, flush=True)
time.sleep(300)
"""
    with subprocess.Popen(
        [sys.executable, "-c", keeper],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        shell = psutil.Process(int(process.stdout.readline()))
        until(lambda: len(shell.children()) == 2, 30)
        family = [shell, *shell.children()]
        process.kill()
    assert all_gone(family, 10)

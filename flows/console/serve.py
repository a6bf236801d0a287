"""`medad serve`: a Prefect server and its workers on one machine; `medad deploy`: what they are to run, and when.

One decision: server and workers are processes of Prefect's own commands, each the head of a process group, flow runs included. So whatever ends
this command, ends all of them: it signals the groups, and should it be killed itself, a shell beside each group does.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from flows.console.command import OK, consoles
from medad_core.errors import MedadError, UsageError

START_S = 180.0  # a server with an empty database takes a minute on a small machine
WORKER_GRACE_S, SERVER_GRACE_S = 10.0, 3.0  # a flow run that is told to end does so in 8 s; a server waits for open connections for ever
POLL_S = 0.1
LINES = 15  # of the log of what died
ENVIRONMENT = {  # beside what the user has set
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Slots of runs that died with the server are given back after its next start; those that it keeps in memory never would be.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "medad_core",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PYTHONUNBUFFERED": "1",
}


class Group:
    """A command as the head of a process group. Its output goes to `say`, line by line; the last lines are kept."""

    def __init__(self, name: str, words: Sequence[str], environment: dict[str, str], say: Callable[[str], None]) -> None:
        self.name, self.say, self.heard = name, say, False
        self.last: deque[str] = deque(maxlen=LINES)
        self.process = subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
        )
        watch = f'read -r _; kill -TERM -- "-$0"; sleep {WORKER_GRACE_S:.0f}; kill -KILL -- "-$0"'  # the pipe ends when this process does
        self.guard = subprocess.Popen(["sh", "-c", watch, str(self.process.pid)], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        self.reader = threading.Thread(target=self._read, name=f"medad-{name}", daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            if line.strip():
                self.last.append(line.rstrip())
                if self.heard:
                    self.say(f"{self.name} | {line.rstrip()}")

    def lives(self) -> bool:
        """Whether any process of the group does."""
        self.process.poll()  # what has ended counts until its parent has looked
        return self._signal(0)

    def end(self, grace_s: float, hurried: Callable[[], bool]) -> None:
        """SIGTERM to the group, SIGKILL to what is left of it after `grace_s`, or at once when `hurried` says so."""
        until = time.monotonic() + grace_s
        self._signal(signal.SIGTERM)
        while self.lives() and time.monotonic() < until and not hurried():
            time.sleep(POLL_S)
        self._signal(signal.SIGKILL)
        self.process.wait()
        self.guard.kill()
        self.guard.wait()
        self.reader.join(1)

    def _signal(self, number: int) -> bool:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return False
        return True


def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on. The server asks nobody for a password: leave it at this machine, or set PREFECT_SERVER_API_AUTH_STRING.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 4200,
    pool: Annotated[list[str] | None, typer.Option("--pool", metavar="POOL", help="Work pool to work for; may be given more than once. [default: medad-cpu]")] = None,
) -> int:
    """Run a Prefect server and a worker here, until Ctrl-C: for one machine. SQLite in PREFECT_HOME, or PREFECT_API_DATABASE_CONNECTION_URL."""
    from flows.console.quiet import LIBRARIES
    from flows.console.tables import terminal

    _check_port(host, port)
    stdout, stderr = terminal(), terminal(stderr=True)
    local = "127.0.0.1" if host == "0.0.0.0" else host
    environment = {**LIBRARIES, **ENVIRONMENT, **os.environ, "PREFECT_API_URL": f"http://{local}:{port}/api"}
    groups: list[Group] = []

    def start(name: str, *words: str) -> None:
        groups.append(Group(name, [sys.executable, "-m", "prefect", "--no-prompt", *words], environment, lambda line: stderr.print(line, markup=False, soft_wrap=True)))

    def dead() -> Group | None:
        return next((group for group in groups if group.process.poll() is not None), None)

    with _signals() as asked:
        try:
            start("server", "server", "start", "--host", host, "--port", str(port))
            until = time.monotonic() + START_S
            while not (asked or dead() or _answers(local, port)):
                if time.monotonic() > until:
                    raise MedadError(f"the Prefect server did not answer within {START_S:.0f} s; start it alone to see why: prefect server start --port {port}")
                time.sleep(POLL_S)
            groups[0].heard = True
            for name in pool or ["medad-cpu"]:
                if not (asked or dead()):
                    start(f"worker of {name}", "worker", "start", "--pool", name, "--type", "process", "--name", f"{socket.gethostname()} {name}", "--install-policy", "never")
                    groups[-1].heard = True
            if not (asked or dead()):
                stdout.print(f"Prefect server http://{local}:{port} with {_database()}; work pools {', '.join(pool or ['medad-cpu'])}; Ctrl-C ends both", soft_wrap=True)
                stdout.print(f"elsewhere: export PREFECT_API_URL=http://{local}:{port}/api", soft_wrap=True)
            while not (asked or dead()):
                time.sleep(POLL_S)
            lost = None if asked else dead()
        finally:
            _end(groups, lambda: len(asked) > 1)
    if lost is None:
        return OK
    for line in lost.last:
        stderr.print(f"{lost.name} | {line}", markup=False, soft_wrap=True)
    raise MedadError(f"the {lost.name} ended by itself, with exit code {lost.process.returncode}; its last lines are above, the rest was stopped")


def _end(groups: Sequence[Group], hurried: Callable[[], bool]) -> None:
    """Workers first, all at once: their flow runs have something to tell the server."""
    workers = [threading.Thread(target=group.end, args=(WORKER_GRACE_S, hurried)) for group in groups[1:]]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for server in groups[:1]:
        server.end(SERVER_GRACE_S, hurried)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGTERM and SIGINT that came while the block runs; the second means at once."""
    asked: list[int] = []
    before = {number: signal.signal(number, lambda number, _: asked.append(number)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_port(host: str, port: int) -> None:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UsageError(f"cannot listen on port {port} of {host}: {error.strerror.lower()}; choose another with --port or --host") from error


def _answers(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=5)  # no proxy comes between
    try:
        connection.request("GET", "/api/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _database() -> str:
    """The server's database, without its password."""
    from prefect.settings import get_current_settings
    from sqlalchemy import make_url

    url = get_current_settings().server.database.connection_url
    return make_url(url.get_secret_value()).render_as_string(hide_password=True) if url else "SQLite"


def deploy(
    inbox: Annotated[str | None, typer.Option("--inbox", metavar="INBOX", help="Folder that studies come into, as the worker sees it.")] = None,
    cohort: Annotated[str | None, typer.Option("--cohort", metavar="FOLDER", help="Folder of the cohort that is screened nightly.")] = None,
    cron: Annotated[str | None, typer.Option("--cron", help='When, such as "0 2 * * *", instead of the time in the file.')] = None,
    timezone: Annotated[str | None, typer.Option("--timezone", help="Of --cron, such as Europe/Berlin; else UTC.")] = None,
    pool: Annotated[str | None, typer.Option("--pool", metavar="POOL", help="Work pool of every deployment, such as medad-gpu, instead of those in the file.")] = None,
    file: Annotated[Path | None, typer.Option("--file", metavar="FILE", help="Deployments other than configs/deploy/prefect.yaml.")] = None,
    words: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings of the runs.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")] = None,
) -> None:
    """Register deployments and their schedules on the Prefect server of PREFECT_API_URL; list them, and what is orphaned there."""
    if (inbox is None) != (cohort is None):
        raise UsageError("--inbox and --cohort go together: what comes into the one is screened into the other")
    _set_variables(inbox, cohort, config, words or [])
    stdout, stderr = consoles()
    with stderr.status("registering"):
        from importlib.metadata import version

        from prefect import get_client

        from flows.deployments import FILE, read_entries, register, standing
        from flows.preflight import check_orchestration
        from flows.runner import server_url
        from medad_core.config import Settings

        if server_url() is None:
            raise UsageError("PREFECT_API_URL is not set: start a server with `medad serve`, then export PREFECT_API_URL=http://127.0.0.1:4200/api")
        check_orchestration(Settings())
        entries = read_entries(file or FILE, pool=pool, cron=cron, timezone=timezone)
        with get_client(sync_client=True) as client:
            register(client, entries, version("medad"))
            rows = standing(client, entries, file or FILE)
    _show(rows, entries, stdout, stderr)


def _set_variables(inbox: str | None, cohort: str | None, config: Path | None, words: Sequence[str]) -> None:
    """What the file's templates read, in this process's environment."""
    from medad_core.config import load_settings, settings_to_yaml

    if cohort is not None:
        folder = Path(cohort).expanduser().absolute()
        os.environ.update(MEDAD_INBOX=str(Path(inbox).expanduser().absolute()), MEDAD_COHORT=str(folder), MEDAD_COHORT_NAME=folder.name)
    if config is not None or words:
        settings = load_settings(config, words)
        if settings.notify.webhook is not None:
            raise UsageError("notify.webhook: deployments keep no secrets; set MEDAD_WEBHOOK where the worker is started, such as: MEDAD_WEBHOOK=… medad serve")
        os.environ["MEDAD_SETTINGS"] = settings_to_yaml(settings)


def _show(rows, entries, stdout, stderr) -> None:
    from flows.console.tables import plain_table

    table = plain_table("deployment", "work pool", "schedule", "next run")
    for row in rows:
        table.add_row(row.name, row.pool or "–", row.schedule or "–", row.next_run)
    stdout.print(table)
    for row in rows:
        for remark in row.remarks:
            stderr.print(f"medad: {row.name}: {remark}", soft_wrap=True)
    for entry in entries:
        if entry.missing:
            stderr.print(f"medad: {entry.pattern} is not registered now: {', '.join(entry.missing)} not given (--inbox and --cohort)", soft_wrap=True)

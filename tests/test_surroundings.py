"""What surrounds medad: proxies, files in the working folder, variables of Python. None of it changes what medad does.

Clients, servers and child processes are real; a proxy here counts who asks it, and answers 403 like those of hospitals.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import patch

import httpx
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.proxy import get_proxy
from websockets.uri import parse_uri

from flows.cli.surroundings import look_around, shadowing_files
from flows.orchestrator import check_proxy
from medad_core.config import NotifySettings
from medad_core.errors import UsageError
from medad_core.notify import Notification, notify
from medad_core.surroundings.processes import clean_environment, python_command, spawn_context, without_relative
from medad_core.surroundings.proxies import KINDS, SET_ASIDE, settle_proxies, unusable_proxy_for, usable_exemptions

NOTHING = "127.0.0.1:9"  # nobody listens there
USABLE = ["http://" + NOTHING, NOTHING, "https://" + NOTHING, "socks5://" + NOTHING, "socks5h://u:p@" + NOTHING]
UNUSABLE = ["socks://" + NOTHING, "socks4://" + NOTHING, "pac+http://x", "http://u:secret@a:b c"]
EXEMPTIONS = [
    "",
    "*",
    "[::1]",
    "fe80::/10",
    "a b,.org",
    "*.hospital.org",
    "10.0.0.0/8",
    "ü.de",
    "127.*",
    "http://x",
    ",,",
]
SPELLINGS = [spelling for kind in KINDS for spelling in (kind, kind.upper())]


class Server(ThreadingHTTPServer):
    """Answers everything with `status`; `asked` are the targets of the requests."""

    daemon_threads = True

    def __init__(self, status: int) -> None:
        self.status = status
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    """A server of medad's own."""
    with Server(200) as server:
        yield server
        server.shutdown()


@pytest.fixture
def proxy() -> Iterator[Server]:
    with Server(403) as server:
        yield server
        server.shutdown()


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The variables are those of proxies, and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with patch.dict(os.environ, {**kept, **variables}, clear=True):
        yield


# --- proxies ---------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(st.sampled_from(SPELLINGS), st.sampled_from([*USABLE, *UNUSABLE]), max_size=3),
    st.dictionaries(st.sampled_from(["no_proxy", "NO_PROXY"]), st.sampled_from(EXEMPTIONS)),
)
def test_a_server_of_this_machine_is_asked_past_every_proxy(own, proxies, exemptions):
    with environment({**proxies, **exemptions}):
        for _ in range(2):
            settle_proxies()
        for host in ("127.0.0.1", "localhost"):
            url = f"http://{host}:{own.server_port}/api/health"
            assert httpx.get(url, verify=False).status_code == 200
            assert urllib.request.urlopen(url).status == 200
            assert get_proxy(parse_uri(url.replace("http", "ws"))) is None


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SPELLINGS), st.sampled_from(UNUSABLE))
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(name, value):
    with environment({name: value}):
        (fault,) = settle_proxies()
        assert fault.startswith(f"{name} is left out") and "secret" not in fault and name not in os.environ
        assert settle_proxies() == []
        scheme = "https" if "https" in name.lower() else "http"
        assert unusable_proxy_for(f"{scheme}://example.org/x") == name
        assert unusable_proxy_for(f"{scheme}://127.0.0.1:4200") is None or not os.environ.get("no_proxy")
        with pytest.raises(UsageError, match=f"PREFECT_API_URL: it is behind the proxy of {name}"):
            check_proxy("PREFECT_API_URL", f"{scheme}://example.org/api")


def test_the_proxy_of_a_scheme_counts_before_that_of_all(proxy):
    with environment({"HTTP_PROXY": proxy.url, "ALL_PROXY": UNUSABLE[0]}):
        settle_proxies()
        assert unusable_proxy_for("http://example.org") is None
        assert unusable_proxy_for("https://example.org") == "ALL_PROXY"
        check_proxy("PREFECT_API_URL", "http://example.org")


def test_without_proxies_the_environment_stays(own):
    with environment({}):
        before = dict(os.environ)
        assert settle_proxies(own.url) == [] and dict(os.environ) == before


def test_the_users_exemptions_stay():
    with environment({"HTTP_PROXY": USABLE[0], "NO_PROXY": ".hospital.org, [2001:db8::1] 10.0.0.1"}):
        settle_proxies()
        exempt = ".hospital.org,2001:db8::1,10.0.0.1,localhost,127.0.0.1,::1"
        assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == exempt
    with environment({"HTTP_PROXY": USABLE[0], "NO_PROXY": "other", "no_proxy": "*"}):
        settle_proxies()
        assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "*"
    assert usable_exemptions("fe80::/10,ü.de,a") == ["a"]


@pytest.mark.parametrize("host", ["127.0.0.2", socket.gethostname(), "ward.localhost"])
def test_a_server_under_any_name_of_this_machine_is_its_own(host):
    with environment({"HTTP_PROXY": USABLE[0]}):
        settle_proxies(f"http://{host}:4200/api")
        assert host.lower() in os.environ["NO_PROXY"].split(",")


@pytest.mark.parametrize("url", ["http://prefect.example.org/api", "http://192.0.2.1:4200/api", "http://[", "", None])
def test_a_server_elsewhere_is_asked_through_the_proxy(url):
    with environment({"HTTP_PROXY": USABLE[0]}):
        settle_proxies(url)
        assert os.environ["NO_PROXY"] == "localhost,127.0.0.1,::1"


def post(address: str) -> bool:
    notification = Notification(event="finished", kind="screen", name="run", seconds=1.0)
    return notify(notification, NotifySettings(webhook=address, timeout_s=5.0), attempts=1)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_a_webhook_goes_through_the_users_proxy(proxy, name):
    with environment({name: proxy.url}):
        settle_proxies()
        assert not post("http://hook.example.org/x")  # the proxy says 403
    assert proxy.asked == ["http://hook.example.org/x"]


def test_a_webhook_is_never_sent_past_a_proxy_that_cannot_be_used(own, caplog):
    asked = len(own.asked)
    with environment({"ALL_PROXY": UNUSABLE[0], "no_proxy": ""}):
        settle_proxies()
        logging.getLogger("medad_core").propagate = True
        with caplog.at_level(logging.WARNING):
            assert not post(own.url)
    assert "behind the proxy of ALL_PROXY" in caplog.text and len(own.asked) == asked


def test_a_missing_file_of_certificates_ends_no_client(own, tmp_path):
    with environment({"SSL_CERT_FILE": str(tmp_path / "none.pem")}):
        (fault,) = settle_proxies()
        assert "SSL_CERT_FILE" in fault and httpx.get(own.url).status_code == 200


# --- child processes -------------------------------------------------------------------------------------------------

SHADOWS = ["secrets.py", "random.py", "calendar.py", "queue/__init__.py", "torch.py", "numpy.py", "prefect/__init__.py"]


@pytest.fixture
def shadowed(tmp_path) -> Path:
    """A working folder whose files would be imported in place of modules; each leaves a note and ends the process."""
    folder = tmp_path / "here"
    for name in SHADOWS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"open({str(tmp_path / 'was_run')!r}, 'a').write(__name__)\nraise SystemExit(7)\n")
    return folder


def run(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, capture_output=True, encoding="utf-8", check=False
    )


IMPORTS = "import secrets, random, calendar, queue, sys; sys.exit(0)"
SPAWNS = """
import sys
sys.path = [path for path in sys.path if path]  # as in the command `medad`
from concurrent.futures import ProcessPoolExecutor
from medad_core.surroundings.processes import spawn_context
if __name__ == "__main__":
    with ProcessPoolExecutor(1, spawn_context()) as pool:
        print(pool.submit(len, "abc").result())
"""


@pytest.mark.parametrize("path", ["", ":", ".", "{folder}/../here/../other:", ":{other}"])
def test_no_child_imports_a_file_of_the_working_folder(shadowed, tmp_path, path):
    other = tmp_path / "other"
    other.mkdir()
    python_path = path.format(folder=shadowed, other=other)
    with patch.dict(os.environ, {"PYTHONPATH": python_path}):
        clean_environment()
        for command in (python_command("-c", IMPORTS), [sys.executable, "-c", IMPORTS]):
            assert run(command, shadowed).returncode == 0
    assert not (tmp_path / "was_run").exists()


def test_without_the_safe_path_the_files_would_be_run(shadowed, tmp_path):
    unsafe = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run([sys.executable, "-c", IMPORTS], cwd=shadowed, env=unsafe, capture_output=True, check=False)
    assert done.returncode == 7 and (tmp_path / "was_run").exists()


def test_no_worker_of_a_pool_imports_a_file_of_the_working_folder(shadowed, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SPAWNS)
    done = run([sys.executable, "-P", str(script)], shadowed)
    assert done.stdout == "3\n" and not (tmp_path / "was_run").exists(), done.stderr


def test_a_python_path_that_the_user_has_set_holds_for_children(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    (tmp_path / "of_the_user.py").write_text("print('found')")
    with patch.dict(os.environ, {"PYTHONPATH": f":{tmp_path}:relative"}):
        clean_environment()
        assert os.environ["PYTHONPATH"] == str(tmp_path)
        assert run(python_command("-c", "import of_the_user"), tmp_path).stdout == "found\n"


def test_medad_itself_stays_in_the_path_of_children(monkeypatch):
    root = Path(__file__).parents[1]
    monkeypatch.chdir(root)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([".", "tests", ""]))
    clean_environment()
    assert set(os.environ["PYTHONPATH"].split(os.pathsep)) == {str(root)} and without_relative("") == ""


def test_the_command_imports_no_file_of_the_working_folder_where_the_python_path_names_it(shadowed, tmp_path):
    done = run([*python_command("-m", "flows.cli"), "doctor"], shadowed, PYTHONPATH=f":{tmp_path}")
    assert done.returncode == 0 and "calendar.py, numpy.py" in done.stdout, done.stderr
    assert not (tmp_path / "was_run").exists()


def test_variables_that_change_any_python_or_uvicorn_do_not_reach_children():
    unwanted = {"PYTHONINSPECT": "1", "PYTHONSTARTUP": "x.py", "WEB_CONCURRENCY": "4", "UVICORN_RELOAD": "1"}
    with patch.dict(os.environ, {**unwanted, "PYTHONIOENCODING": "latin-1:strict"}):
        clean_environment()
        assert not unwanted.keys() & os.environ.keys()
        assert os.environ["PYTHONIOENCODING"] == "latin-1:backslashreplace"
        done = subprocess.run(python_command("-c", r"print('\u2013')"), capture_output=True, check=True)
    assert done.stdout == b"\\u2013\n"


def test_the_context_of_pools_is_spawn():
    assert spawn_context().get_start_method() == "spawn" and os.environ["PYTHONSAFEPATH"] == "1"


# --- the temporary server --------------------------------------------------------------------------------------------

STARTS = """
from flows.cli.start import start_again_if_needed
start_again_if_needed()
import os, sys
from flows.cli.quiet import PREFECT
for name, value in PREFECT.items():
    os.environ.setdefault(name, value)
from medad_core.errors import MedadError
from medad_core.surroundings.processes import clean_environment
from medad_core.surroundings.proxies import settle_proxies
clean_environment()
settle_proxies()
from flows.cli.server import start_temporary_server
try:
    start_temporary_server()
except MedadError as error:
    print(f"medad: {error}", file=sys.stderr)
    sys.exit(1)
from prefect import get_client
with get_client(sync_client=True) as client:
    print(client.api_healthcheck())
    print("own", len(client.read_flow_runs()))
    import httpx, psutil
    print("others", httpx.post(f"{client.api_url}flow_runs/filter", json={}).status_code)
    text = os.environ["PREFECT_API_AUTH_STRING"]
    lines = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    print("shown", sum(text in line for line in lines), "of", len(lines))
"""


def started(folder: Path, log: Path, **variables: str) -> tuple[int, str, list[str]]:
    """Exit code and output of a process that starts the server, and what is left of what it started."""
    mark = f"MARK={log}"
    unset = {"PREFECT_API_URL", "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"}
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    environment = {**kept, "PREFECT_HOME": str(log.parent / "prefect"), **dict([mark.split("=")]), **variables}
    with log.open("w") as stream:
        command = [sys.executable, "-P", "-c", STARTS]
        done = subprocess.run(command, cwd=folder, env=environment, stdout=stream, stderr=stream, timeout=300)
    left = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MARK") == str(log) and process.status() != psutil.STATUS_ZOMBIE:
                process.wait(5)
        except psutil.TimeoutExpired:
            left.append(process.name())
            process.kill()
        except psutil.Error:
            continue
    return done.returncode, log.read_text(errors="replace"), left


def test_the_temporary_server_starts_in_any_surroundings_and_ends(shadowed, tmp_path, proxy):
    code, output, left = started(
        shadowed, tmp_path / "log", http_proxy=proxy.url, ALL_PROXY="socks5h://" + NOTHING, PYTHONPATH=":"
    )
    assert (code, left, proxy.asked) == (0, [], []) and "None" in output, output
    assert "own 0" in output and "others 401" in output and "shown 0 of 2" in output, output
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"PREFECT_API_DATABASE_CONNECTION_URL": "nonsense://x"}, "exit code"),
        ({"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "1"}, "Timed out"),
    ],
)
def test_a_server_that_cannot_start_is_said_in_one_line_and_leaves_nothing(tmp_path, variables, reason):
    code, output, left = started(tmp_path, tmp_path / "log", **variables)
    (line,) = [line for line in output.splitlines() if line.startswith("medad:")]
    assert code == 1 and left == [] and reason in line and "could not be started" in line, output


# --- the doctor ------------------------------------------------------------------------------------------------------


def test_the_doctor_shows_proxies_without_passwords_encoding_and_shadowing_files(shadowed, monkeypatch):
    monkeypatch.chdir(shadowed)
    (shadowed / ".env").touch()
    (shadowed / "calendar").mkdir()  # no package
    with environment({"HTTPS_PROXY": "http://u:secret@h:1", "ALL_PROXY": UNUSABLE[1]}):
        settle_proxies()
        assert os.environ[SET_ASIDE] == "ALL_PROXY"
        findings = [(finding.state, finding.what, finding.result) for finding in look_around()]
    text = str(findings)
    assert "secret" not in text and not [state for state, _, _ in findings if state == "fault"]
    for part in (
        "HTTPS_PROXY; not for localhost, 127.0.0.1, ::1",
        "ALL_PROXY: of no kind",
        "output utf-8",
        ".env here",
    ):
        assert part in text
    assert shadowing_files(shadowed) == [
        "calendar.py",
        "numpy.py",
        "prefect/",
        "queue/",
        "random.py",
        "secrets.py",
        "torch.py",
    ]

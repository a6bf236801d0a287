"""A real S3 server (moto) in a process of its own, and a proxy before any server that disturbs what passes."""

from __future__ import annotations

import http.client
import io
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pandas as pd
import pytest
from prefect_harness import WORDS, write_case

from medad_core.config import Settings, load_settings
from medad_core.inbox.folder import CohortFolder
from medad_core.inbox.screening import CohortOutcome, screen_inbox
from medad_core.run.run import Run
from medad_core.stages.complete import complete_stage, plan_stage
from medad_core.stages.evaluate import evaluate_run
from medad_core.stages.screen import LoopExecutor, screen
from medad_core.store import PART_STAGES, objects
from medad_core.store.files import read_bytes
from medad_core.store.lock import locked

BUCKET = "ward"
ROOT = f"s3://{BUCKET}"
SETTINGS = load_settings(None, list(WORDS))
_HOP = {"connection", "transfer-encoding", "keep-alive", "host", "content-length"}


@dataclass(frozen=True)
class Asked:
    """A request that passes the proxy, and how many passed before it."""

    number: int
    method: str
    path: str


# What the proxy does to a request: None lets it pass. A number is answered instead of the server. "cut" sends it half,
# "dead" does not answer at all, "answered too late" lets the server do it and loses the answer.
Disturb = Callable[[Asked], str | int | None]


@dataclass(frozen=True)
class Request:
    """What a client sent, without the headers that concern its connection to the proxy."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Answer = tuple[int, dict[str, str], bytes]  # status, headers, content
Send = Callable[[Request], Answer]


@dataclass
class Proxy:
    """The way to the server; `translate` speaks to one of another dialect. `disturb` may be replaced at any time."""

    server: int
    translate: Callable[[Send, Request], Answer] = lambda send, request: send(request)
    disturb: Disturb = lambda asked: None
    asked: list[Asked] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    bytes_out: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(self, request: Request) -> Answer:
        """Ask the server."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server, timeout=60)
        headers = {"Host": f"127.0.0.1:{self.server}", **request.headers}
        connection.request(request.method, request.path, request.body, headers)
        answer = connection.getresponse()
        content = answer.read()
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP}
        if request.method == "HEAD":
            kept["Content-Length"] = answer.getheader("Content-Length") or "0"
        connection.close()
        return answer.status, kept, content

    def counts(self) -> Counter[str]:
        return Counter(each.method for each in self.asked)

    def note(self, method: str, path: str) -> Asked:
        with self.lock:
            self.asked.append(Asked(len(self.asked), method, path))
            return self.asked[-1]


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def pass_on(self) -> None:
            asked = proxy.note(self.command, self.path)
            what = proxy.disturb(asked)
            if what == "cut":
                self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
                self._hang_up()
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if what == "dead":
                time.sleep(5)
                self._hang_up()
            elif isinstance(what, int):
                self._answer(what, {}, b"<Error><Code>SlowDown</Code></Error>")
            else:
                status, headers, content = self._forward(body)
                if what == "answered too late":
                    self._hang_up()
                else:
                    self._answer(status, headers, content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

        def _forward(self, body: bytes) -> Answer:
            sent = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
            return proxy.translate(proxy.send, Request(self.command, self.path, sent, body))

        def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(content)))
            elif "Content-Length" not in headers:
                self.send_header("Content-Length", "0")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
                proxy.bytes_out += len(content)

        def _hang_up(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Clients that are killed hang up in the middle."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(command: list[str], port: int) -> Iterator[None]:
    """A server process that listens at `port` while the block runs."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None and time.monotonic() < deadline, f"{command[0]} does not start"
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def s3_server() -> Iterator[int]:
    """The port of a new S3 server."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with serving(command, port):
        yield port


@contextmanager
def proxy_to(port: int) -> Iterator[Proxy]:
    proxy = Proxy(port)
    server = _Server(("127.0.0.1", 0), _handler(proxy))
    proxy.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()


def variables(url: str) -> dict[str, str]:
    """What a process needs in its environment to reach a store."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture
def s3(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A store that this process reaches through a proxy; its bucket is empty."""
    with proxy_to(s3_port) as proxy:
        for name, value in variables(proxy.url).items():
            monkeypatch.setenv(name, value)
        client = client_of(s3_port)
        if BUCKET in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
                for each in page.get("Contents", []):
                    client.delete_object(Bucket=BUCKET, Key=each["Key"])
        else:
            client.create_bucket(Bucket=BUCKET)
        objects.forget_stores()
        yield proxy
        objects.forget_stores()


def client_of(port: int):
    """A client of others, which goes past the proxy."""
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )


def upload(port: int, folder: os.PathLike, prefix: str) -> None:
    client = client_of(port)
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            client.upload_file(path, BUCKET, f"{prefix}/{os.path.relpath(path, folder)}")


def keys(port: int, prefix: str = "") -> list[str]:
    pages = client_of(port).get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return [each["Key"] for page in pages for each in page.get("Contents", [])]


# --- the same cases on a disk, and a quick client --------------------------------------------------------------------


@pytest.fixture(scope="session")
def inbox(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("inbox")
    for number in range(3):
        write_case(root, f"BraTS2021_{number:05d}", seed=number)
    (root / "BraTS2021_00002" / "BraTS2021_00002_flair.nii.gz").write_bytes(b"\x1f\x8b broken")
    (root / "BraTS2021_00001" / "note.txt").write_text("beside")
    (root / "strange.nii.gz").write_bytes(b"")
    return root


@pytest.fixture(scope="session")
def local(inbox, tmp_path_factory) -> Path:
    """The run of the same cases on a disk."""
    out = tmp_path_factory.mktemp("local") / "run"
    screen(str(inbox), str(out), SETTINGS)
    return out


def screened_cohort(cohort: str, inbox: str, settings: Settings) -> CohortOutcome:
    """What is new in an inbox, screened in this process without Prefect."""

    def screen_batch(run: Run, machine_is_well: bool) -> str:
        for name in PART_STAGES:
            plan_stage(run, name)
            complete_stage(run, name, LoopExecutor(run, name), machine_is_well=machine_is_well)
        return evaluate_run(run).page

    with locked(cohort):
        return screen_inbox(CohortFolder(cohort, inbox), inbox, settings, screen_batch)


def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"init_backoff": timedelta(seconds=0.02), "max_backoff": timedelta(seconds=0.2), "base": 2.0}
    retries = {"max_retries": 12, "retry_timeout": timedelta(seconds=60), "backoff": seconds}
    for name in ("_PATIENT", "_HASTY"):
        monkeypatch.setattr(objects, name, retries)
    monkeypatch.setattr(objects, "_CLIENT", {**objects._CLIENT, "read_timeout": "2s"})
    objects.forget_stores()


def predictions_of(run: str | Path) -> pd.DataFrame:
    data = read_bytes(f"{run}/predictions.parquet")
    assert data is not None
    return pd.read_parquet(io.BytesIO(data))

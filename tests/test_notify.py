"""The webhook: what is posted to it, what never is, and that it cannot hurt a run."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydantic import ValidationError

from medad_core import notify as webhook
from medad_core.config import NotifySettings, load_settings, settings_from_yaml, settings_to_yaml
from medad_core.errors import ConfigError
from medad_core.notify import WEBHOOK_VARIABLE, Notification, keep_webhook, notify

FINISHED = Notification(
    event="finished", kind="screen-cohort", name="ward", seconds=1.5, counts={"cases": 3, "rejected": 1}
)
TOKEN = "s3cr3t"


class Hook(ThreadingHTTPServer):
    """A webhook that keeps what is posted. It answers with the statuses in `answers`, the last of them for ever.

    With status 0 it never answers.
    """

    daemon_threads = True

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.bodies = []
        self.headers = []
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/{TOKEN}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> Hook:
        return self

    def __exit__(self, *_) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.headers.append(dict(self.headers))
        answers = self.server.answers
        status = answers.pop(0) if len(answers) > 1 else answers[0]
        if status == 0:
            self.server.closing.wait()
            return
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(webhook, "PAUSE_S", 0.05)
    monkeypatch.delenv(WEBHOOK_VARIABLE, raising=False)


def settings(url: str, timeout_s: float = 5.0) -> NotifySettings:
    return NotifySettings(webhook=url, timeout_s=timeout_s)


def test_a_notification_is_posted_as_json_once():
    with Hook(204) as hook:
        assert notify(FINISHED, settings(hook.url))
    assert hook.bodies == [
        {
            "event": "finished",
            "kind": "screen-cohort",
            "name": "ward",
            "seconds": 1.5,
            "counts": {"cases": 3, "rejected": 1},
        }
    ]
    assert hook.headers[0]["Content-Type"] == "application/json"


def test_the_environment_names_the_webhook_where_settings_do_not(monkeypatch):
    with Hook(200) as hook:
        monkeypatch.setenv(WEBHOOK_VARIABLE, hook.url)
        assert notify(FINISHED, NotifySettings())
    assert len(hook.bodies) == 1
    monkeypatch.delenv(WEBHOOK_VARIABLE)
    assert not notify(FINISHED, NotifySettings())


@pytest.mark.parametrize(
    "extra",
    [
        {"counts": {"BraTS2021_00000": "damaged"}},
        {"counts": {"cases": -1}},
        {"reason": "a path"},
        {"kind": "/data/patients"},
    ],
)
def test_nothing_but_numbers_fits_into_a_notification(extra):
    with pytest.raises(ValidationError):
        Notification(**{**FINISHED.model_dump(), **extra})


def test_a_webhook_that_stutters_gets_the_notification_at_last():
    with Hook(500, 503, 200) as hook:
        assert notify(FINISHED, settings(hook.url))
    assert len(hook.bodies) == 3


@pytest.mark.parametrize(("status", "attempts"), [(500, 3), (429, 3), (404, 1), (302, 1)])
def test_a_webhook_that_refuses_is_a_warning_that_does_not_name_it(status, attempts, caplog):
    with Hook(status) as hook:
        assert not notify(FINISHED, settings(hook.url))
    assert len(hook.bodies) == attempts
    assert str(status) in caplog.text and TOKEN not in caplog.text and str(hook.server_port) not in caplog.text


def test_a_webhook_that_hangs_is_left_in_time(caplog):
    with Hook(0) as hook:
        started = time.monotonic()
        assert not notify(FINISHED, settings(hook.url, 0.3))
        assert time.monotonic() - started < 3 * (0.3 + 0.05) + 1
    assert "the webhook" in caplog.text and TOKEN not in caplog.text


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9/s3cr3t", "http://no-such-host.invalid/s3cr3t"],
)
def test_an_address_that_leads_nowhere_is_a_warning_that_does_not_name_it(url, caplog):
    assert not notify(FINISHED, settings(url, 2.0))
    assert "webhook" in caplog.text and TOKEN not in caplog.text


@pytest.mark.parametrize("status", [200, 404])
def test_no_log_of_any_library_names_the_address_at_any_level(status, caplog):
    caplog.set_level(logging.DEBUG)
    with Hook(status) as hook:
        notify(FINISHED, settings(hook.url))
    assert len(hook.bodies) == 1
    assert TOKEN not in caplog.text and str(hook.server_port) not in caplog.text


def test_a_proxy_of_the_environment_is_used(monkeypatch):
    with Hook(200) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.server_port}")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
        assert notify(FINISHED, settings("http://hooks.invalid/path"))
    assert len(proxy.bodies) == 1


def test_the_address_is_never_written_down():
    chosen = load_settings(None, [f"notify.webhook=https://hooks.example/{TOKEN}", "notify.timeout_s=2"])
    assert chosen.notify.webhook.get_secret_value().endswith(TOKEN)
    text = settings_to_yaml(chosen)
    assert TOKEN not in text + repr(chosen) + chosen.model_dump_json()
    assert settings_from_yaml(text).notify == NotifySettings(timeout_s=2)


def test_an_address_in_settings_is_kept_for_the_flow_of_this_process(monkeypatch):
    monkeypatch.setenv(WEBHOOK_VARIABLE, "")  # so that it is gone after the test
    keep_webhook(settings("http://hooks.example"))
    assert os.environ[WEBHOOK_VARIABLE] == "http://hooks.example"
    keep_webhook(NotifySettings())
    assert os.environ[WEBHOOK_VARIABLE] == "http://hooks.example"


@pytest.mark.parametrize("value", ["ftp://s3cr3t", "s3cr3t", "[s3cr3t]", "{s3cr3t: 1}"])
def test_a_wrong_address_is_refused_without_quoting_it(value):
    with pytest.raises(ConfigError, match=r"notify\.webhook: should start with") as caught:
        load_settings(None, [f"notify.webhook={value}"])
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "file:///s3cr3t",
        "data:,s3cr3t",
        "ftp://host/s3cr3t",
        "http:///s3cr3t",
        "http://a s3cr3t",
        "http://[s3cr3t",
        "http://127.0.0.1:s3cr3t/",
        "s3cr3t",
    ],
)
def test_both_ways_in_take_web_addresses_alone(address, monkeypatch, caplog):
    with pytest.raises(ConfigError, match=r"notify\.webhook") as refused:
        load_settings(None, [f"notify.webhook='{address}'"])
    monkeypatch.setenv(WEBHOOK_VARIABLE, address)
    with pytest.raises(ConfigError, match=f"{WEBHOOK_VARIABLE} should start with") as of_environment:
        keep_webhook(NotifySettings())
    assert not notify(FINISHED, NotifySettings())
    assert "no notification" in caplog.text
    assert TOKEN not in f"{refused.value}{of_environment.value}{caplog.text}"

"""The authentication string of the servers: who can read it, who is sent it."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import prefect.context
import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings

from flows.access import CLIENT, auth_file, how_to_export, read_auth_string, server_auth_string, use_auth_string
from flows.api_server import hosts_of
from medad_core.errors import UsageError

pytestmark = pytest.mark.usefixtures("home")
TEXT = "medad:string"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "a folder" / "home"))
    monkeypatch.delenv(CLIENT, raising=False)
    monkeypatch.setattr(prefect.context, "GLOBAL_SETTINGS_CONTEXT", prefect.context.GLOBAL_SETTINGS_CONTEXT)
    return tmp_path / "a folder" / "home"


@pytest.fixture
def own_server():
    """Something of this user that listens on this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/api"


def keep(mode: int = 0o600, text: str = TEXT) -> None:
    auth_file().parent.mkdir(parents=True)
    auth_file().write_text(text)
    auth_file().chmod(mode)


def test_the_string_is_made_once_for_its_user_alone(home):
    before = os.umask(0)
    try:
        made = server_auth_string()
    finally:
        os.umask(before)
    assert made == server_auth_string() == read_auth_string() and len(made) > 40 and made.count(":") == 1
    assert stat.S_IMODE(auth_file().stat().st_mode) == 0o600 and stat.S_IMODE(home.stat().st_mode) == 0o700
    assert made not in how_to_export() and f"'{auth_file()}'" in how_to_export()


def make_link() -> None:
    keep()
    auth_file().rename(auth_file().with_name("elsewhere"))
    auth_file().symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: keep(0o640), "others may read or write it"),
        (lambda: keep(0o602), "others may read or write it"),
        (make_link, "too many levels of symbolic links"),
        (lambda: auth_file().mkdir(parents=True), "it is no file"),
        (lambda: (keep(), auth_file().unlink(), os.mkfifo(auth_file())), "it is no file"),
        (lambda: keep(text=""), "no string of the form"),
        (lambda: keep(text="string"), "no string of the form"),
    ],
)
def test_a_file_that_is_not_safe_is_refused_with_the_way_out(make: Callable[[], None], reason: str):
    make()
    for read in (read_auth_string, server_auth_string):
        with pytest.raises(UsageError, match=f"{auth_file()}.*{reason}.*delete it and start `medad serve` again"):
            read()


def test_a_file_of_another_user_is_refused(monkeypatch):
    keep()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(UsageError, match="belongs to another user"):
        read_auth_string()


def test_a_server_of_this_user_is_sent_the_string(own_server):
    use_auth_string(own_server)
    assert CLIENT not in os.environ, "there is no string yet"
    keep()
    use_auth_string(own_server)
    settings = prefect.context.GLOBAL_SETTINGS_CONTEXT.settings
    assert os.environ[CLIENT] == settings.api.auth_string.get_secret_value() == TEXT


def test_nobody_else_is_sent_the_string(own_server, monkeypatch):
    keep()
    for url in ("http://192.0.2.1:4200/api", "http://prefect.example.org/api", "http://[", ""):
        use_auth_string(url)
    with monkeypatch.context() as other_user:
        other_user.setattr(os, "geteuid", lambda: os.getuid() + 1)
        use_auth_string(own_server)
    with temporary_settings({PREFECT_API_AUTH_STRING: "the:users"}):
        use_auth_string(own_server)
    assert CLIENT not in os.environ


def test_a_server_for_this_machine_has_names_of_this_machine():
    assert {"localhost", "127.0.0.1"} < set(hosts_of("127.0.0.1")) and "[::1]" in hosts_of("::1")
    assert hosts_of("0.0.0.0") == hosts_of("medad.example.org") == ["*"]

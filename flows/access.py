"""Who may speak to this user's Prefect servers: an authentication string, in a file that nobody else can read.

One decision: the first `medad serve` makes the string, and server, workers and commands of the same user find it in the
file. It is passed on in the environment of processes, never on a command line, and never printed. It is sent only to a
server of this user on this machine: another user's program could wait at the same port for it.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import stat
import sys
from pathlib import Path
from urllib.parse import urlsplit

from medad_core.errors import UsageError
from medad_core.surroundings.proxies import is_this_machine

CLIENT = "PREFECT_API_AUTH_STRING"
SERVER = "PREFECT_SERVER_API_AUTH_STRING"
FORM = re.compile(r"[^\s:]+:\S+")  # user:password, as Prefect's clients and its page have it
LENGTH = 4096  # bytes, more than any string has
SOCKETS = ("/proc/net/tcp", "/proc/net/tcp6")
LISTENS = "0A"


def auth_file() -> Path:
    """Where the authentication string of this user's servers is kept."""
    return Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser() / "medad-server.auth"


def how_to_export() -> str:
    """The shell command that gives the string to Prefect's own commands."""
    return f'export {CLIENT}="$(cat {shlex.quote(str(auth_file()))})"'


def new_auth_string() -> str:
    """A random authentication string in Prefect's form, user:password."""
    return f"medad:{secrets.token_urlsafe(32)}"


def server_auth_string() -> str:
    """The string of `medad serve`: the one that the user has set, else that of the file, which is made if missing.

    Raises UsageError.
    """
    from prefect.settings import PREFECT_SERVER_API_AUTH_STRING

    return PREFECT_SERVER_API_AUTH_STRING.value() or read_auth_string() or _make_auth_string()


def read_auth_string() -> str | None:
    """The string of the file, None if there is no file.

    Raises UsageError for a file of another user, one that others may read, or one that is no file with a string.
    """
    path = auth_file()
    try:
        # A FIFO would keep us waiting.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, str(error.strerror).lower()) from error
    try:
        fault = _fault(os.fstat(descriptor))
        if fault is not None:
            raise _unusable(path, fault)
        text = os.read(descriptor, LENGTH).decode(errors="replace").strip()
    finally:
        os.close(descriptor)
    if not FORM.fullmatch(text):
        raise _unusable(path, "it has no string of the form user:password")
    return text


def _fault(status: os.stat_result) -> str | None:
    """Why a file cannot hold what only its user may know; None where it can."""
    if not stat.S_ISREG(status.st_mode):
        return "it is no file"
    if status.st_uid != os.geteuid():
        return "it belongs to another user"
    return "others may read or write it" if stat.S_IMODE(status.st_mode) & 0o077 else None


def _make_auth_string() -> str:
    path = auth_file()
    text = new_auth_string()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{text}\n")
    except OSError as error:
        raise UsageError(
            f"{path}: the server's authentication string cannot be kept there: {str(error.strerror).lower()}; "
            "set PREFECT_HOME to a folder of yours"
        ) from error
    return text


def _unusable(path: Path, reason: str) -> UsageError:
    return UsageError(
        f"{path}: the server's authentication string is not read, because {reason}; "
        "delete it and start `medad serve` again, which makes another"
    )


def use_auth_string(url: str) -> None:
    """Give this process, and what it starts, the string for the Prefect server at `url`, where it is one of this user.

    A string or a key that the user has set stays. Raises UsageError where the file cannot be used.
    """
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY

    if PREFECT_API_AUTH_STRING.value() or PREFECT_API_KEY.value() or not _is_own_server(url):
        return
    text = read_auth_string()
    if text is not None:
        set_client_auth_string(text)


def set_client_auth_string(text: str) -> None:
    """Let Prefect's clients in this process, and in those that it starts, authenticate themselves with `text`."""
    os.environ[CLIENT] = text
    context = sys.modules.get("prefect.context")
    if context is not None:
        context.refresh_global_settings_context()


def _is_own_server(url: str) -> bool:
    """Whether `url` is on this machine, and a process of this user listens there."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or {"https": 443}.get(parts.scheme, 80)
    except ValueError:
        return False
    return is_this_machine(host) and _listeners(port) <= {os.geteuid()}


def _listeners(port: int) -> set[int]:
    """The users whose processes listen on a TCP port of this machine, at any address; none where Linux does not say."""
    users = set()
    for table in filter(Path.exists, map(Path, SOCKETS)):
        for line in table.read_text(encoding="ascii").splitlines()[1:]:
            _, local, _, state, _, _, _, user, *_ = line.split()
            if state == LISTENS and int(local.rpartition(":")[2], 16) == port:
                users.add(int(user))
    return users

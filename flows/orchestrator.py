"""Checks the Prefect server and the runner in the settings.

One decision: if the runner does not work here, or the server does not answer, the user gets one line before the run
starts, never a failed flow run.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from base64 import b64encode
from pathlib import Path

from flows.access import CLIENT, how_to_export, use_auth_string
from medad_core.config import FlowSettings, Settings
from medad_core.errors import UsageError
from medad_core.surroundings.proxies import settle_proxies, unusable_proxy_for

SERVER_TIMEOUT_S = 10.0
SETTINGS_OF_SERVER = (  # variables that name a server, where settings are kept, or that none may be started
    "PREFECT_API_URL",
    "PREFECT_PROFILE",
    "PREFECT_PROFILES_PATH",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE",
    "PREFECT_SERVER_EPHEMERAL_ENABLED",
)


def has_prefect_settings() -> bool:
    """Whether Prefect must be asked for its settings: it is imported already, or they may name a server.

    Prefect reads them from the environment, where it takes names in any case, and from these files. To import it takes
    seconds, which a command without a server, and with nothing left to do, need not wait for.
    """
    given = {name.upper(): value for name, value in os.environ.items() if value}
    if "prefect" in sys.modules or not given.keys().isdisjoint(SETTINGS_OF_SERVER):
        return True
    home = Path(given.get("PREFECT_HOME", "~/.prefect")).expanduser()
    files = (home / "profiles.toml", Path(".env"), Path("prefect.toml"), Path("pyproject.toml"))
    return any(file.exists() for file in files)


def server_url() -> str | None:
    """The configured Prefect server, None if a temporary one is started for each command."""
    if not has_prefect_settings():
        return None
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value()


def server_fault(url: str, timeout_s: float = SERVER_TIMEOUT_S, *, trust_env: bool = True) -> Exception | None:
    """The error of a request to the Prefect server at `url`, None if it answers.

    With `trust_env` False, the request ignores the proxy settings of the environment.
    """
    import httpx

    try:
        httpx.get(f"{url}/health", timeout=timeout_s, trust_env=trust_env).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return error
    return None


def check_orchestration(settings: Settings) -> None:
    """Check the runner, and the server if one is configured. Raises UsageError."""
    check_runner(settings.flow)
    check_device(settings)
    url = server_url()
    if url:
        settle_proxies(url)  # a profile of Prefect may name it, which nobody read before
        check_proxy("PREFECT_API_URL", url)
    fault = server_fault(url) if url else None
    if fault is not None:
        raise UsageError(
            f"PREFECT_API_URL: no Prefect server answers at {url} ({fault}); start it with `medad serve`, "
            "or unset PREFECT_API_URL"
        ) from fault
    if url:
        use_auth_string(url)
        check_auth_string(url)


def check_auth_string(url: str) -> None:
    """Raise UsageError where the Prefect server at `url` refuses this process."""
    if is_refused(url):
        raise UsageError(
            f"{CLIENT}: the Prefect server at {url} refuses it, or it is not set; the user of `medad serve` has the "
            f"server's: {how_to_export()}"
        )


def is_refused(url: str, timeout_s: float = SERVER_TIMEOUT_S) -> bool:
    """Whether the Prefect server at `url` wants another authentication string than that of this process."""
    import httpx
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY

    text = PREFECT_API_AUTH_STRING.value()
    if PREFECT_API_KEY.value() and not text:
        return False  # of Prefect's cloud
    headers = {"Authorization": f"Basic {b64encode(text.encode()).decode()}"} if text else {}
    try:
        return httpx.get(f"{url}/version", headers=headers, timeout=timeout_s).status_code == httpx.codes.UNAUTHORIZED
    except httpx.HTTPError:
        return False  # it has answered a moment ago: whoever asks it next says so


def check_proxy(key: str, url: str) -> None:
    """Raise UsageError where `url`, which `key` names, is behind a proxy that medad cannot use."""
    variable = unusable_proxy_for(url)
    if variable is not None:
        raise UsageError(
            f"{key}: it is behind the proxy of {variable}, which medad cannot use; give {variable} an address with "
            "http://, https://, socks5:// or socks5h://, or exempt the host in NO_PROXY"
        )


def check_runner(settings: FlowSettings) -> None:
    """Raise UsageError for a runner that is not installed, has no server, or has an address that cannot be one."""
    if settings.runner == "ray":
        if importlib.util.find_spec("ray") is None:
            raise UsageError("flow.runner: ray is not installed; install medad[ray] or set flow.runner=thread")
        if settings.ray_address is not None:
            from flows.ray_cluster import address_of

            address_of(settings.ray_address)
    if settings.runner == "process" and not server_url():
        # Each worker process would start a temporary server of its own, and they would lock each other's SQLite.
        raise UsageError(
            "flow.runner: process needs a Prefect server; start one with `medad serve`, "
            "then set PREFECT_API_URL=http://127.0.0.1:4200/api, or set flow.runner=thread"
        )


def check_device(settings: Settings) -> None:
    """Raise UsageError where runner ray is to compute on a GPU that its workers do not reserve."""
    device = settings.models.device
    if settings.flow.runner == "ray" and device.startswith("cuda"):
        raise UsageError(
            f"models.device={device}: with flow.runner=ray a stage computes on the GPUs that its workers reserve; "
            "leave models.device=auto, and set flow.ray_workers.maps.gpus=1"
        )

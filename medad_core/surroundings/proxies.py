"""Proxies: medad's own servers are asked past them, everything else goes through them as the user has set it.

One decision: NO_PROXY names this machine, in the environment, where every HTTP library and every child process reads
it. Values that make a library fail before it sends anything, whatever the address, are taken out of the environment.
Their names are noted there, so that nothing meant for such a proxy is sent past it.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment

KINDS = ("http_proxy", "https_proxy", "all_proxy")  # that HTTP libraries read, in either spelling
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SET_ASIDE = "MEDAD_PROXIES_SET_ASIDE"
CERTIFICATES = "SSL_CERT_FILE"


def settle_proxies(server_url: str | None = None) -> list[str]:
    """Exempt this machine from proxies, and set aside what no HTTP library can use. Returns a line for each of those.

    `server_url` is the address of a Prefect server: it is exempt too, where it is on this machine.
    """
    faults = [*_set_aside_certificates(), *_set_aside_proxies()]
    # httpx reads the exemptions, and fails for some of them, also where there is no proxy.
    if proxy_variables() or _exemptions():
        _exempt([*LOOPBACK, *_own_hosts(server_url)])
    return faults


def proxy_variables() -> list[str]:
    """Names of the variables that set a proxy."""
    return sorted(name for name, value in os.environ.items() if name.lower() in KINDS and value)


def unusable_proxy_for(url: str) -> str | None:
    """The variable of the proxy that `url` should go through, where it was set aside; else None."""
    noted = os.environ.get(SET_ASIDE, "").split(",")
    try:
        parts = urlsplit(url)
    except ValueError:  # whoever asks it says so
        return None
    if not parts.hostname or proxy_bypass_environment(parts.hostname):
        return None
    by_kind = {name.lower(): name for name in noted}
    own = by_kind.get(f"{parts.scheme}_proxy")
    return own or (None if parts.scheme in getproxies_environment() else by_kind.get("all_proxy"))


def proxy_fault(value: str) -> str | None:
    """Why the value of a proxy variable cannot be used; None where it can. The value may hold a password: not shown."""
    import httpx

    try:
        httpx.HTTPTransport(proxy=httpx.Proxy(value if "://" in value else f"http://{value}"), verify=False).close()
    except Exception:  # a wrong address, an unknown kind, a package that is missing
        kind = re.match(r"[A-Za-z][A-Za-z0-9+.-]*(?=://)", value)
        what = f"a proxy of kind {kind[0]}" if kind else "no address of a proxy"
        return f"{what}; give http://, https://, socks5:// or socks5h:// with host and port"
    return None


def usable_exemptions(value: str) -> list[str]:
    """The entries of a NO_PROXY that HTTP libraries can read.

    Brackets around IPv6 are removed, and spaces separate like commas; httpx fails for a network of IPv6.
    """
    entries = [entry.strip("[]") if entry.startswith("[") else entry for entry in re.split(r"[,\s]+", value)]
    return [entry for entry in entries if entry and _is_readable(entry)]


def _set_aside_proxies() -> Iterator[str]:
    for name in proxy_variables():
        fault = proxy_fault(os.environ[name])
        if fault is not None:
            del os.environ[name]
            os.environ[SET_ASIDE] = ",".join(filter(None, [os.environ.get(SET_ASIDE), name]))
            yield f"{name} is left out, because it is {fault}"


def _set_aside_certificates() -> Iterator[str]:
    path = os.environ.get(CERTIFICATES)
    if path:
        try:
            ssl.create_default_context(cafile=path)
        except OSError:
            del os.environ[CERTIFICATES]
            yield f"{CERTIFICATES}={path} is left out, because it is no file of certificates; correct or unset it"


def _exemptions() -> str:
    """NO_PROXY. The lower-case spelling counts where both are set: urllib, curl and httpx agree."""
    return os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))


def _exempt(hosts: list[str]) -> None:
    value = _exemptions()
    # "*" alone means everything; for some libraries "*,localhost" would mean nothing but localhost.
    entries = ["*"] if value.strip() == "*" else [*usable_exemptions(value), *hosts]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys(entries))


def _is_readable(entry: str) -> bool:
    import httpx

    try:
        ipaddress.ip_address(entry)
    except ValueError:
        try:
            httpx.URL(entry if "://" in entry else f"all://*{entry}")
        except Exception:
            return False
    return True


def _own_hosts(server_url: str | None) -> list[str]:
    try:
        host = urlsplit(server_url or "").hostname
    except ValueError:
        return []
    return [host] if host and is_this_machine(host) else []


def is_this_machine(host: str) -> bool:
    """Whether a host is this machine: its name, or an address that it can listen on. No name is looked up."""
    if host in LOOPBACK:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.endswith(".localhost") or host == socket.gethostname().lower()
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True

"""The doctor's look at what surrounds medad: proxies, encoding, files that shadow modules.

One decision: nothing here is a fault, because medad works all the same. It is said because other programs may not, and
because it explains what the user sees. No value of a proxy variable is shown: it may hold a password.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator
from importlib.machinery import all_suffixes
from importlib.metadata import packages_distributions
from pathlib import Path

from flows.cli.findings import Finding
from medad_core.surroundings.proxies import SET_ASIDE, proxy_variables

NAMED = 5  # files that a finding names
PREFECT_FILES = (".env", "prefect.toml")


def look_around() -> Iterator[Finding]:
    """Findings about the environment and the working folder."""
    yield from _proxies()
    yield _encoding()
    yield _shadowing()
    yield from _prefect_files()


def _proxies() -> Iterator[Finding]:
    usable = proxy_variables()
    unusable = os.environ.get(SET_ASIDE, "")
    if unusable:
        remedy = "give it an address with http://, https://, socks5:// or socks5h://"
        yield Finding("note", "proxy", f"{unusable.replace(',', ', ')}: of no kind that can be used", remedy)
    if usable:
        exempt = os.environ.get("NO_PROXY", "")
        yield Finding("ok", "proxy", f"{', '.join(usable)}; not for {exempt.replace(',', ', ')}")
    elif not unusable:
        yield Finding("ok", "proxy", "none")


def _encoding() -> Finding:
    output = codecs.lookup(sys.stdout.encoding).name if sys.stdout is not None else "none"
    names = codecs.lookup(sys.getfilesystemencoding()).name
    result = f"output {output}, names of files {names}"
    if output in ("utf-8", "none"):
        return Finding("ok", "encoding", result)
    return Finding(
        "note", "encoding", result, "none: what it lacks is printed plainly; LC_ALL=C.UTF-8 shows everything"
    )


def _shadowing() -> Finding:
    folder = Path.cwd()
    names = shadowing_files(folder)
    if not names:
        return Finding("ok", "working folder", "shadows no module")
    some = ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
    return Finding(
        "note", "working folder", f"{some}: named like modules", "none: medad imports nothing from it; others may"
    )


def shadowing_files(folder: Path) -> list[str]:
    """Files and packages of `folder` that Python would import in place of an installed or standard module, sorted.

    A folder without `__init__` is none of them: Python takes it only where there is nothing else of that name.
    """
    modules = {*sys.stdlib_module_names, *packages_distributions()}
    suffixes = all_suffixes()
    names = []
    for entry in folder.iterdir():
        name = entry.name
        if entry.is_dir():
            if name in modules and any((entry / f"__init__{suffix}").is_file() for suffix in suffixes):
                names.append(f"{name}/")
        elif any(name.endswith(suffix) and name.removesuffix(suffix) in modules for suffix in suffixes):
            names.append(name)
    return sorted(names)


def _prefect_files() -> Iterator[Finding]:
    files = [name for name in PREFECT_FILES if Path(name).is_file()]
    if files:
        yield Finding("note", "Prefect settings", f"{', '.join(files)} here: Prefect reads it", "move it if not meant")

"""Writes LICENSES.md: the licence of every package of `requirements-cpu.lock`, as its own metadata state it.

Run it in the environment of `make setup`: `python tests/list_licenses.py`. A test compares its names and versions with
the lock.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageMetadata, metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements-cpu.lock"
PAGE = ROOT / "LICENSES.md"
# A licence that asks for more than a notice. It is a word of its own in what a package states.
ASKS_MORE = re.compile(r"GPL|Mozilla|MPL|Proprietary|Artistic", re.IGNORECASE)
LONGEST = 120  # of a licence that is given as its text
HEAD = """# Licences

medad itself is under the Apache License 2.0 (`LICENSE`). `make setup` installs the packages below, and torch
(BSD-3-Clause), beside it. Nothing of them is in this repository. The licence is what the package's own metadata state;
read the package's own files before you pass an environment on. `make licenses` writes this page from
`requirements-cpu.lock`.

Packages whose licence asks for more than a notice (LGPL, GPL or Artistic, MPL, Intel's own) are marked with *.

| package | version | licence |
|---|---|---|
"""


def pins() -> dict[str, str]:
    """Version by package of the lock."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s\\]+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE))


def licence_of(facts: PackageMetadata) -> str:
    """What a package states: an SPDX expression, else classifiers, else the first line of its text."""
    expression = facts.get("License-Expression")
    classifiers = [text.rsplit(" :: ", 1)[-1] for text in facts.get_all("Classifier", []) if "License ::" in text]
    text = (facts.get("License") or "").strip().split("\n")[0][:LONGEST]
    return expression or "; ".join(classifiers) or text or "not stated"


def page() -> str:
    """The whole page."""
    rows = []
    for name, version in pins().items():
        licence = licence_of(metadata(name))
        mark = " *" if ASKS_MORE.search(licence) else ""
        rows.append(f"| {name}{mark} | {version} | {licence} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

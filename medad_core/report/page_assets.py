"""The files that all pages of a run share: NiiVue, the pages' own scripts and their style sheet.

One decision: they lie beside the pages and are named by relative links, so that a folder on a disk is enough, and a
case does not carry the viewer's 2 MB again. NiiVue is the file that the package nilearn carries, unchanged.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path

from medad_core.errors import UsageError
from medad_core.report.colour import colour_table
from medad_core.report.figures import OUTLINE

PACKAGE = "nilearn"
VIEWER = "nilearn/_assets/js/niivue.umd.js"
FOUND = "#ffffff"  # the outline of what the map shows above its threshold; that of the mask is OUTLINE
_OWN = ("list.js", "index.js", "case.js", "niivue.LICENSE.txt")
_STYLES = ("templates/report.css", "templates/case_report.css", "assets/page.css")
_TEMPLATES = ("index.html.j2", "case_view.html.j2", "case_report.html.j2", "figures.html.j2")


@cache
def assets() -> dict[str, bytes]:
    """Content by file name. Raises UsageError where NiiVue is not installed."""
    package = files("medad_core.report")
    found = {name: (package / "assets" / name).read_bytes() for name in _OWN}
    styles = [(package / name).read_text(encoding="utf-8") for name in _STYLES]
    return {**found, "page.css": "\n".join([*styles, _colours()]).encode(), "niivue.js": _viewer()}


@cache
def version() -> str:
    """Hash of all that makes a page out of its case: templates, scripts and styles."""
    package = files("medad_core.report")
    content = hashlib.sha256()
    for name in _TEMPLATES:
        content.update((package / "templates" / name).read_bytes())
    for name, data in sorted(assets().items()):
        content.update(name.encode() + hashlib.sha256(data).digest())
    return content.hexdigest()


def viewer_colours() -> dict[str, dict[str, list[int]]]:
    """NiiVue's tables of the map's scale and of the two outlines."""
    steps = list(range(256))
    outlines = {
        f"medad-{name}": {
            **{channel: [int(colour[at : at + 2], 16)] * 2 for channel, at in zip("RGB", (1, 3, 5), strict=True)},
            "A": [0, 255],
            "I": [0, 255],
        }
        for name, colour in (("found", FOUND), ("expert", OUTLINE))
    }
    return {"medad-map": {**colour_table(), "I": steps}, **outlines}


def _viewer() -> bytes:
    missing = f"the page needs NiiVue, which the package {PACKAGE} carries; run `make setup`"
    try:
        return Path(str(distribution(PACKAGE).locate_file(VIEWER))).read_bytes()
    except (PackageNotFoundError, OSError) as error:
        raise UsageError(missing) from error


def _colours() -> str:
    """The scale of the legend as it lies over tissue at full opacity, and the colours of the outlines."""
    table = colour_table()
    stops = [f"rgb({r} {g} {b}/{a / 255:.2f})" for r, g, b, a in zip(*table.values(), strict=True)][::15]
    return (
        f":root {{ --outline: {OUTLINE}; --found: {FOUND}; }}\n"
        f".scale i {{ background: linear-gradient(90deg, {', '.join(stops)}); }}\n"
    )

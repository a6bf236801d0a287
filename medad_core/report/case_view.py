"""The page of a case: a viewer of its slices beside its report, and the script with its volumes.

One decision: a page names the hash of its inputs. It is written again if they are others: removed first and written
last, after its script. So a writer that was killed leaves no page, and no page beside volumes of other inputs.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict

from medad_core.media import file_name, visible
from medad_core.report.case import CaseReport
from medad_core.report.colour import OPACITY
from medad_core.report.environment import page_environment
from medad_core.report.page_assets import version, viewer_colours
from medad_core.report.scripts import script_of
from medad_core.report.viewer import Volumes
from medad_core.report.words import words_of

_INPUTS = re.compile(r'<meta name="medad-inputs" content="([0-9a-f]{64})">')


def inputs_of(report: CaseReport, *parts: str) -> str:
    """SHA-256, hex, of all that a page is made of: its report, `parts` that its volumes are made of, this code."""
    content = hashlib.sha256(report.model_dump_json().encode())
    for text in (*parts, version()):
        content.update(text.encode())
    return content.hexdigest()


def named_inputs(page: str) -> str | None:
    """The inputs that a page names, None where it names none."""
    match = _INPUTS.search(page)
    return match and match[1]


def render_case_page(report: CaseReport, inputs: str) -> str:
    """The page as a string, UTF-8; it loads the assets, the worklist and the script of its case by relative links."""
    return (
        page_environment()
        .get_template("case_view.html.j2")
        .render(
            report=report,
            words=words_of(report.language),
            inputs=inputs,
            file=file_name(report.case_id),
            opacity=round(100 * OPACITY),
        )
    )


def case_script(report: CaseReport, volumes: Volumes) -> str:
    """The script of a case: its volumes, colours and slices."""
    content = {
        "file": file_name(report.case_id),
        "case": visible(report.case_id),
        "first": report.first_slice,
        "last": report.last_slice,
        "look_at": report.look_at,
        "colours": viewer_colours(),
        "volumes": asdict(volumes),
    }
    return script_of("shownCase", content)

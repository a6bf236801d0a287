"""`RUN/warnings.csv`: what the content of a screened case makes doubtful, such as a FLAIR that looks like a T1."""

from __future__ import annotations

import csv
import io

from medad_core.run.inputs import Inputs
from medad_core.store import Stage, join, write_text

NAME = "warnings.csv"
Warned = tuple[str, str]  # case_id, warning


def write_warnings(run: str, slices: Stage, inputs: Inputs) -> list[Warned]:
    """Write `warnings.csv` of the run in the folder `run`; returns its rows, sorted. Raises StoreError."""
    plan = slices.plan()
    recorded = inputs.read_all([part.number for part in plan.parts], plan.sha256)
    rows = sorted(item for _, part in recorded for item in part.warnings.items())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("case_id", "warning"))
    writer.writerows(rows)
    write_text(join(run, NAME), text.getvalue())
    return rows

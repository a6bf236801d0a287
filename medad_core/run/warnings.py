"""`RUN/warnings.csv`: what the content of a screened case makes doubtful, such as a FLAIR that looks like a T1."""

from __future__ import annotations

from medad_core.media import write_csv
from medad_core.run.inputs import Inputs
from medad_core.store import Stage, join, write_text

NAME = "warnings.csv"
Warned = tuple[str, str]  # case_id, warning


def write_warnings(run: str, slices: Stage, inputs: Inputs) -> list[Warned]:
    """Write `warnings.csv` of the run in the folder `run`; returns its rows, sorted. Raises StoreError."""
    plan = slices.plan()
    recorded = inputs.read_all([part.number for part in plan.parts], plan.sha256)
    rows = sorted(item for _, part in recorded for item in part.warnings.items())
    write_text(join(run, NAME), write_csv(("case_id", "warning"), rows))
    return rows

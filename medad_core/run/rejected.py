"""`RUN/rejected.csv`: every case that some stage could not use, and why."""

from __future__ import annotations

from collections.abc import Iterable

from medad_core.media import write_csv
from medad_core.store import Stage, join, write_text

NAME = "rejected.csv"
QUARANTINED = "quarantined after "  # start of the reason of a case in a quarantined part
Rejected = tuple[str, str, str]  # case_id, stage, reason


def rejected_cases(stages: Iterable[Stage]) -> list[Rejected]:
    """Case, stage and reason of every case that failed, sorted. Raises StoreError if a plan is damaged."""
    return sorted((item.key, stage.name, item.reason) for stage in stages for item in stage.failed())


def write_rejected(run: str, stages: Iterable[Stage]) -> list[Rejected]:
    """Write `rejected.csv` of the run in the folder `run`; returns its rows. Raises StoreError."""
    rows = rejected_cases(stages)
    write_text(join(run, NAME), write_csv(("case_id", "stage", "reason"), rows))
    return rows

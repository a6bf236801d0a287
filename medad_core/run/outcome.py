"""What a finished run comes to: where its results are, and how many cases and slices they are of.

One decision: it is no part of Prefect's flows, which return it, because a command that finds everything done needs it
too, and Prefect takes seconds to import.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from medad_core.run.evaluated import find_evaluated
from medad_core.run.run import Run
from medad_core.store import join

RESULT_FILES = {"predictions": "predictions.parquet", "metrics": "metrics.md", "page": "report.html"}


class Outcome(BaseModel):
    """The result of a run: paths and counts.

    `rejected` is (case_id, stage, reason), `warned` a number of cases, `followed` of patients examined more than once.
    """

    model_config = ConfigDict(frozen=True)
    predictions: str
    metrics: str
    page: str
    slices: int
    cases: int
    rejected: tuple[tuple[str, str, str], ...]
    warned: int = 0
    followed: int = 0

    def counts(self) -> dict[str, int]:
        """What is reported of it."""
        return {"cases": self.cases, "slices": self.slices, "rejected": len(self.rejected)}


def outcome_of(run: Run) -> Outcome | None:
    """The outcome of an opened run whose results are those of its stages; None where they have to be made."""
    done = find_evaluated(run)
    if done is None:
        return None
    return Outcome(
        **{name: join(run.uri, file) for name, file in RESULT_FILES.items()},
        slices=done.slices,
        cases=done.cases,
        rejected=tuple(run.write_rejected()),
        warned=len(run.write_warnings()),
        followed=done.followed,
    )

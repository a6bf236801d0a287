"""The task of the four stages: a run, its settings, a stage and part numbers in, counts out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from prefect import Task, task
from prefect.runtime import task_run
from pydantic import BaseModel, ConfigDict

from medad_core.config import FlowSettings, Settings
from medad_core.store import PartRecord
from tasks.policy import OPTIONS, with_policy

DESCRIPTIONS = {
    "slices": "Read, turn and scale the volumes of a range of parts.",
    "maps": "Encode and decode the slices of a range of parts.",
    "prompts": "Convert the maps of a range of parts into prompt embeddings.",
    "answers": "Let the LLM answer the prompts of a range of parts; one engine a process.",
}


class PartsReport(BaseModel):
    """What a task returns to its flow: counts, never rows."""

    model_config = ConfigDict(frozen=True)
    stage: str
    parts: int
    rows: int
    done: int
    failed: int

    @classmethod
    def of(cls, stage: str, records: Sequence[PartRecord]) -> PartsReport:
        """The sums over the records of a stage's parts."""
        return cls(
            stage=stage,
            parts=len(records),
            rows=sum(record.rows for record in records),
            done=sum(record.done for record in records),
            failed=sum(len(record.failed) for record in records),
        )


class Pool(Protocol):
    """Workers of other machines."""

    def make_parts(
        self, run: str, settings: Settings, stage: str, numbers: Sequence[int], attempt: int
    ) -> list[PartRecord]:
        """See `medad_core.stages.workers.make_parts`."""


@task(name="parts", **OPTIONS)
def make_parts(run: str, settings: Settings, stage: str, numbers: list[int], pool: Pool | None = None) -> PartsReport:
    """Make parts of a stage in this process, or have `pool` make them; a retry makes those that are still pending."""
    # The stage modules import torch. They are imported inside the task, so that importing this module stays fast.
    from medad_core.stages import workers

    make = pool.make_parts if pool is not None else workers.make_parts
    return PartsReport.of(stage, make(run, settings, stage, numbers, task_run.run_count or 1))


def task_of_range(stage: str, numbers: Sequence[int], settings: FlowSettings) -> Task:
    """The task that makes a range of parts, named such as `maps-00012-00015`."""
    named = make_parts.with_options(name=stage, description=DESCRIPTIONS[stage])
    return with_policy(named, f"{stage}-{numbers[0]:05d}-{numbers[-1]:05d}", settings)

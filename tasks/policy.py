"""What all tasks have in common: no cache, no kept results, retries only for what can heal.

One decision: stage files alone say what is done. Prefect's cache sees neither our code nor our data, so it is off; a retried
task asks the stage which of its parts are still pending.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run
from pydantic import BaseModel, ConfigDict

from medad_core.config import FlowSettings
from medad_core.stages.common import stage_of
from medad_core.store import PartRecord

# A file or folder that is missing, forbidden or of the wrong kind now will be so in a second.
LASTING = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)


class Report(BaseModel):
    """What crosses the boundary between a task and its flow: counts, never rows."""

    model_config = ConfigDict(frozen=True)
    stage: str
    parts: int
    rows: int
    done: int
    failed: int

    @classmethod
    def of(cls, stage: str, records: Sequence[PartRecord]) -> Report:
        return cls(stage=stage, parts=len(records), rows=sum(r.rows for r in records), done=sum(r.done for r in records), failed=sum(len(r.failed) for r in records))


def can_heal(error: BaseException) -> bool:
    """Whether trying again may help: a filesystem or network that stuttered, a GPU that was full. A wrong setting never heals.

    The store turns system errors into StoreError; the system's own error is its cause.
    """
    system = next((e for e in (error, error.__cause__) if isinstance(e, OSError)), None)
    if system is not None:
        return not isinstance(system, LASTING)
    return any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)


def _retry(_task: Task, _run: Any, state: Any) -> bool:
    return can_heal(state.result(raise_on_failure=False))


OPTIONS = {"cache_policy": NO_CACHE, "persist_result": False, "retry_condition_fn": _retry}


def with_policy(task: Task, name: str, settings: FlowSettings) -> Task:
    """The task with the run name and the retries that the settings ask for."""
    return task.with_options(task_run_name=name, retries=settings.retries, retry_delay_seconds=settings.retry_delay_s)


def left_of(run: str, stage: str, numbers: Sequence[int]) -> list[int]:
    """The parts to do: all that were asked for, on a retry only those that the attempt before did not finish."""
    if (task_run.run_count or 1) <= 1:
        return list(numbers)
    pending = set(stage_of(run, stage).pending())
    return [number for number in numbers if number in pending]

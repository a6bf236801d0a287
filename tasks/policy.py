"""The options of all tasks: no cache, no stored results, retries only for errors that a retry may help.

One decision: stage files alone say what is done. Prefect's cache knows neither our code nor our data, so it is off. A
retried task asks the stage which of its parts are still pending.
"""

from __future__ import annotations

from typing import Any

from prefect import Task
from prefect.cache_policies import NO_CACHE

from medad_core.config import FlowSettings
from medad_core.faults.classify import can_heal


def _can_heal(_task: Task, _run: Any, state: Any) -> bool:
    return can_heal(state.result(raise_on_failure=False))


OPTIONS = {"cache_policy": NO_CACHE, "persist_result": False, "retry_condition_fn": _can_heal}


def with_policy(task: Task, name: str, settings: FlowSettings) -> Task:
    """The task with the given run name and the retries of the settings."""
    return task.with_options(task_run_name=name, retries=settings.retries, retry_delay_seconds=settings.retry_delay_s)

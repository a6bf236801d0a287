"""Where the tasks of a flow run, by configuration.

One decision: the runner is opened inside the flow from `settings.flow`, so the same flow, deployed or called, follows its
settings; `max_workers` is always set, because Prefect's own default is without bound.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence

from prefect import Task
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from medad_core.config import FlowSettings, settings_from_yaml
from medad_core.errors import UsageError
from tasks.policy import with_policy

RANGES_PER_WORKER = 3  # enough that a slow range does not leave the others idle, few enough that models load rarely


def task_runner(settings: FlowSettings) -> TaskRunner:
    """The runner that the settings name. Raises UsageError where it cannot work here."""
    if settings.runner == "thread":
        return ThreadPoolTaskRunner(max_workers=settings.max_workers)
    check_runner(settings)
    if settings.runner == "process":
        return ProcessPoolTaskRunner(max_workers=settings.max_workers)
    from prefect_ray import RayTaskRunner

    cpus = {} if settings.ray_address else {"num_cpus": settings.max_workers}
    return RayTaskRunner(address=settings.ray_address, init_kwargs=cpus)


def check_runner(settings: FlowSettings) -> None:
    """Raise UsageError for a runner that is not installed, or whose workers would find no server."""
    if settings.runner == "ray" and importlib.util.find_spec("prefect_ray") is None:
        raise UsageError("flow.runner: ray is not installed; install medad[ray] or set flow.runner=thread")
    if settings.runner != "thread" and not server_url():
        # Each worker process would start a temporary server of its own, and they would lock each other's SQLite.
        raise UsageError(
            f"flow.runner: {settings.runner} needs a Prefect server; start one with `prefect server start`, "
            "then set PREFECT_API_URL=http://127.0.0.1:4200/api, or set flow.runner=thread"
        )


def server_url() -> str | None:
    """The configured Prefect server, None where a temporary one is started for each command."""
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value()


def ranges_of(numbers: Sequence[int], count: int) -> list[list[int]]:
    """`numbers` in at most `count` runs of nearly equal length, in order."""
    count = min(count, len(numbers))
    bounds = [len(numbers) * step // count for step in range(count + 1)] if count else []
    return [list(numbers[start:stop]) for start, stop in itertools.pairwise(bounds)]


def work_off(task: Task, run: str, settings: str, ranges: Sequence[Sequence[int]]) -> None:
    """Run `task` on every range and wait for all of them. The first failure is raised, so the flow fails with it."""
    flow = settings_from_yaml(settings).flow
    if not ranges:
        return
    with task_runner(flow) as runner:
        named = [(with_policy(task, f"{task.name}-{numbers[0]:05d}-{numbers[-1]:05d}", flow), list(numbers)) for numbers in ranges]
        futures = [runner.submit(work, {"run": run, "settings": settings, "numbers": numbers}) for work, numbers in named]
        for future in futures:
            future.result()

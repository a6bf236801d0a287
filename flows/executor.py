"""Runs ranges of parts as Prefect tasks, with the task runner of the settings.

One decision: the runner is opened inside the flow from `settings.flow`, so the same flow, deployed or called, follows
its settings. `max_workers` is always set, because Prefect's default has no limit. After a failure, a new runner makes
the remaining parts, because a process pool cannot be used after one of its processes has died. With Ray the tasks are
threads, each of which has its range made on a node; so names, states, retries and cancellation are those of threads.
This module does not decide what is at fault for a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from prefect.exceptions import TerminationSignal
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from flows.interruption import INTERRUPTED, TERMINATED, end_in, end_soon, ignore_sigterm, leave_behind
from flows.orchestrator import check_runner, server_url
from flows.ray_pool import RayPool
from medad_core import stopping
from medad_core.config import FlowSettings
from medad_core.faults.supervisor import Failure, OnFailure, Range
from medad_core.run.run import Run
from medad_core.stages.workers import make_parts
from medad_core.surroundings.processes import clean_environment, spawn_context
from tasks.parts import task_of_range

RANGES_PER_WORKER = 3  # enough to balance slow ranges, few enough that models are loaded rarely
RANGES_PER_RAY_WORKER = 8  # models are kept, and a node may join late
Runner = TypeVar("Runner", TaskRunner, ProcessPoolExecutor)


def task_runner(settings: FlowSettings) -> TaskRunner:
    """The task runner in the settings. Raises UsageError if it cannot work here."""
    if settings.runner != "process":
        return ThreadPoolTaskRunner(max_workers=settings.max_workers)
    check_runner(settings)
    clean_environment()
    return ProcessPoolTaskRunner(max_workers=settings.max_workers)


def range_count(settings: FlowSettings, stage: str = "") -> int:
    """The number of ranges of a stage. One worker gets one range, because each range loads the models again.

    One engine makes all answers, because it takes seconds to start and fills a device. Workers of Ray keep models and
    engine, and each may have a device of its own.
    """
    if settings.max_workers == 1 or (stage == "answers" and settings.runner != "ray"):
        return 1
    return settings.max_workers * (RANGES_PER_RAY_WORKER if settings.runner == "ray" else RANGES_PER_WORKER)


@contextmanager
def interruptible(runner: Runner, tidy: Callable[[], None] = lambda: None) -> Iterator[Runner]:
    """Open `runner`. On exit, wait for its tasks, but only briefly after SIGTERM or Ctrl-C.

    Then threads in the middle of a batch are abandoned, processes are ended, and `tidy` removes their leftovers.
    """
    stopping.withdraw_request()
    runner.__enter__()
    try:
        yield runner
    except (KeyboardInterrupt, SystemExit, TerminationSignal) as interruption:
        if isinstance(interruption, TerminationSignal):  # Prefect's handler replaces that of the command
            end_in(code=TERMINATED)
            ignore_sigterm()
        leave_behind(lambda: _close(runner))
        tidy()
        if isinstance(interruption, KeyboardInterrupt) and not server_url():
            # Ctrl-C has also ended the temporary server: Prefect would try for minutes to reach it.
            end_soon(INTERRUPTED)
        raise
    except BaseException:
        _close(runner)
        raise
    _close(runner)


def _close(runner: Runner) -> None:
    """Wait for the tasks of `runner`, and close it.

    A worker that is killed while it writes to the pool's message queue keeps the queue's lock. Prefect gives the queue
    up after some seconds, but Python would wait for the rest of the queue when it exits.
    """
    runner.__exit__(None, None, None)
    queue = getattr(runner, "_subprocess_message_queue", None)  # None if it could be closed
    if queue is not None:
        queue.cancel_join_thread()


class FlowExecutor:
    """See `medad_core.faults.supervisor.Executor`: every range is a task of the current flow."""

    pool: RayPool | None = None  # that makes the ranges, None for the process of the task

    def __init__(self, run: Run, stage: str) -> None:
        self.run = run
        self.stage = stage
        self.settings = run.settings.flow

    @property
    def is_own_process(self) -> bool:
        """True for threads; workers are separate processes otherwise."""
        return self.settings.runner == "thread"

    def make(self, ranges: Sequence[Range], on_failure: OnFailure) -> list[Failure]:
        """See `Executor.make`."""
        return self._make(ranges, self.settings, on_failure)

    def make_alone(self, number: int) -> Failure | None:
        """See `Executor.make_alone`."""
        once = self.settings.model_copy(update={"max_workers": 1, "retries": 0})
        failures = self._make([[number]], once, on_failure=lambda _failure: None)
        return failures[0] if failures else None

    def make_apart(self, number: int) -> Failure | None:
        """See `Executor.make_apart`."""
        pool = ProcessPoolExecutor(1, spawn_context())
        with interruptible(pool, self._tidy):
            try:
                pool.submit(make_parts, self.run.uri, self.run.settings, self.stage, [number]).result()
            except Exception as error:
                return Failure([number], error)
        return None

    def _make(self, ranges: Sequence[Range], settings: FlowSettings, on_failure: OnFailure) -> list[Failure]:
        failures = []
        with interruptible(task_runner(settings), self._tidy) as runner:
            futures = [self._submit(runner, numbers, settings) for numbers in ranges]
            for numbers, future in zip(ranges, futures, strict=True):
                try:
                    future.result()
                except Exception as error:
                    failures.append(Failure(numbers, error))
                    on_failure(failures[-1])
        return failures

    def _submit(self, runner: TaskRunner, numbers: Range, settings: FlowSettings):
        parameters = {
            "run": self.run.uri,
            "settings": self.run.settings,
            "stage": self.stage,
            "numbers": list(numbers),
            "pool": self.pool,
        }
        return runner.submit(task_of_range(self.stage, numbers, settings), parameters)

    def _tidy(self) -> None:
        """Clean up after an interruption: no part is at fault, so all notes are removed."""
        self.run.sweep()
        stage = self.run.stage(self.stage)
        for number in stage.begun():
            stage.leave(number)


class RayExecutor(FlowExecutor):
    """Has the tasks' ranges made by workers on a Ray cluster."""

    def __init__(self, run: Run, stage: str) -> None:
        super().__init__(run, stage)
        self.pool = RayPool(run, stage)

    def make_apart(self, number: int) -> Failure | None:
        """See `Executor.make_apart`."""
        return self.make_alone(number)

    def _tidy(self) -> None:
        self.pool.close()  # first: a worker that is alive may still write
        super()._tidy()


@contextmanager
def executor_of(run: Run, stage: str) -> Iterator[FlowExecutor]:
    """The executor of the settings; its workers end with the block."""
    if run.settings.flow.runner != "ray":
        yield FlowExecutor(run, stage)
        return
    executor = RayExecutor(run, stage)
    try:
        yield executor
    finally:
        executor.pool.close()

"""Where the tasks of a flow run, by configuration, and what becomes of the others when one of them fails.

One decision: the runner is opened inside the flow from `settings.flow`, so the same flow, deployed or called, follows its
settings; `max_workers` is always set, because Prefect's own default is without bound. It is opened anew for what a failure left undone:
a pool of processes is of no use any more once one of them has died.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from prefect import Task
from prefect.exceptions import TerminationSignal
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from flows.interruption import INTERRUPTED, TERMINATED, deafen, end_in, hurry, leave_behind
from medad_core import stopping
from medad_core.config import FlowSettings, settings_from_yaml
from medad_core.errors import UsageError
from medad_core.stages.common import quarantine, stage_of, sweep_run
from tasks.policy import Suspect, Trial, suspect_of, with_policy

log = logging.getLogger(__name__)
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


def check_runner(settings: FlowSettings, device: str = "cpu") -> None:
    """Raise UsageError for a runner that is not installed, whose workers would find no server, or that hides the GPU which is the `device`."""
    if settings.runner == "ray" and device.startswith("cuda"):
        raise UsageError(
            "flow.runner: Ray shows no GPU to tasks that ask it for none, as medad's do; set flow.runner=process, or models.device=cpu"
        )
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


def range_count(settings: FlowSettings) -> int:
    """Into how many ranges the parts of a stage are cut. One worker needs no more than one: it would only load its models again."""
    return 1 if settings.max_workers == 1 else RANGES_PER_WORKER * settings.max_workers


@contextmanager
def interruptible(runner: TaskRunner, tidy: Callable[[], None] = lambda: None) -> Iterator[TaskRunner]:
    """`runner`, opened. Leaving it waits for what runs in it, but after SIGTERM or Ctrl-C not for long: threads are left behind where they
    are in the middle of a batch, processes are ended, and `tidy` removes what they leave."""
    stopping.withdraw_request()
    runner.__enter__()
    try:
        yield runner
    except (KeyboardInterrupt, SystemExit, TerminationSignal) as interruption:
        if isinstance(interruption, TerminationSignal):  # Prefect hides the signal from the handler of the command
            end_in(code=TERMINATED)
            deafen()
        leave_behind(lambda: _close(runner))
        tidy()
        if isinstance(interruption, KeyboardInterrupt) and not server_url():
            hurry(INTERRUPTED)  # Ctrl-C has reached the temporary server too: Prefect would try for minutes to tell it
        raise
    except BaseException:
        _close(runner)
        raise
    _close(runner)


def _close(runner: TaskRunner) -> None:
    """Wait for what runs, and close. A worker that is killed while it writes to the pool's queue of messages keeps the queue's lock: Prefect gives the
    queue up after some seconds, but Python would wait at its end for what is still in it."""
    runner.__exit__(None, None, None)
    queue = getattr(runner, "_subprocess_message_queue", None)  # None again where it could be closed
    if queue is not None:
        queue.cancel_join_thread()


def work_off(task: Task, run: str, settings: str, ranges: Sequence[Sequence[int]]) -> None:
    """Run `task`, named like its stage, on every range of parts until each part is made, or quarantined.

    Raises what stops the run: see tasks.policy for which errors do, and which are a part's own.
    """
    work = _Work(task, run, settings)
    apart, deaths = [number for numbers in ranges for number in numbers if work.is_fatal(number)], 0
    for number in apart:
        work.judge(number, work.apart(number), 1)
    ranges = [left for numbers in ranges if (left := [number for number in numbers if number not in apart])]
    while ranges:
        failed = work.side_by_side(ranges, work.flow)
        left = set(work.stage.pending()) - work.given_up() if failed else set()
        undone = [[number for number in numbers if number in left] for numbers, _ in failed]
        deaths += any(isinstance(error, BrokenProcessPool) for _, error in failed)
        if deaths == 1 and all(isinstance(error, BrokenProcessPool) for _, error in failed):
            log.warning("a worker process of %s died; its parts are made again in new ones", work.stage.name)
        else:
            for numbers, (_, error) in zip(undone, failed, strict=True):
                if numbers:
                    work.judge(numbers[0], work.alone(numbers[0]), suspect_of(error).attempts + (deaths > 1))
            undone = [numbers[1:] for numbers in undone]
        ranges = [numbers for numbers in undone if numbers]
    work.quarantine()


class _Work:
    """The parts of one stage under trial: ways to make them, and what is known of those that could not be made."""

    def __init__(self, task: Task, run: str, settings: str) -> None:
        self.task, self.run, self.settings = task, run, settings
        self.stage, self.flow, self.trial = stage_of(run, task.name), settings_from_yaml(settings).flow, Trial()

    def side_by_side(
        self, ranges: Sequence[Sequence[int]], flow: FlowSettings
    ) -> list[tuple[Sequence[int], Exception]]:
        """Run the task on every range, as many at once as there are workers; the ranges that failed, with their errors. Raises what stops the run."""
        failed = []
        with interruptible(task_runner(flow), self._tidy) as runner:
            named = [
                (with_policy(self.task, f"{self.task.name}-{numbers[0]:05d}-{numbers[-1]:05d}", flow), numbers)
                for numbers in ranges
            ]
            futures = [
                runner.submit(work, {"run": self.run, "settings": self.settings, "numbers": list(numbers)})
                for work, numbers in named
            ]
            for numbers, future in zip(ranges, futures, strict=True):
                try:
                    future.result()
                except Exception as error:
                    suspect_of(error)
                    failed.append((numbers, error))
        if failed:
            sweep_run(self.run)  # of a worker that died
        return failed

    def alone(self, number: int) -> Suspect | None:
        """Try a part that may be to blame by itself, as often as tasks are retried; what was wrong with it at last, None where it was made."""
        for _ in range(max(1, self.flow.retries)):
            failed = self.side_by_side([[number]], self.flow.model_copy(update={"max_workers": 1, "retries": 0}))
            if not failed:
                return None
        suspect = suspect_of(failed[0][1])
        suspect.attempts = max(1, self.flow.retries)
        return suspect

    def apart(self, number: int) -> Suspect | None:
        """Make a part in a process of its own; what was wrong with it, None where it was made."""
        log.warning(
            "a process ended in the middle of %s part %d; the part is made in one of its own now",
            self.stage.name,
            number,
        )
        with interruptible(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")), self._tidy) as pool:
            try:
                pool.submit(
                    _make, self.task.fn.__module__, self.task.fn.__name__, self.run, self.settings, number
                ).result()
            except Exception as error:
                sweep_run(self.run)
                return suspect_of(error)
        return None

    def is_fatal(self, number: int) -> bool:
        """Whether this process has to fear for itself: an earlier one ended in the middle of the part, and there are no worker processes."""
        return self.flow.runner == "thread" and self.stage.was_begun(number)

    def judge(self, number: int, suspect: Suspect | None, attempts: int) -> None:
        """Give a part up, unless it was made after all. Raises the suspect where the machine fails and not the part."""
        if suspect is not None and self.trial.give_up(number, attempts + suspect.attempts, suspect, self._made()):
            self._prove(suspect)

    def given_up(self) -> set[int]:
        return {number for number, *_ in self.trial.given_up}

    def quarantine(self) -> None:
        """Write down what was given up. Raises a suspect where the machine may have failed and not the part."""
        made = self._made()
        if self.trial.in_doubt(made):
            self._prove(self.trial.given_up[-1][2])
        for number, attempts, reason in self.trial.verdict(made):
            quarantine(self.run, self.stage.name, number, attempts, reason)

    def _prove(self, suspect: Suspect) -> None:
        """See that the machine is well: make a part again that went well once. Where there is none, or it does not go well now, nothing is known of the suspect."""
        good = [number for number, record in self.stage.records().items() if record.rows]
        if not good:
            raise suspect
        log.warning("%s part %d is made again, to see whether it is the machine that fails", self.stage.name, good[-1])
        self.stage.forget(good[-1])
        if self.alone(good[-1]):
            raise suspect
        self.trial.trust()

    def _made(self) -> int:
        """How many parts have rows, of earlier lives of the run too."""
        return sum(record.rows > 0 for record in self.stage.records().values())

    def _tidy(self) -> None:
        """After an interruption, whose fault no part is."""
        sweep_run(self.run)
        for part in self.stage.plan().parts:
            self.stage.leave(part.number)


def _make(module: str, name: str, run: str, settings: str, number: int) -> None:
    getattr(importlib.import_module(module), name).fn(run, settings, [number])

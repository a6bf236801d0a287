"""What all tasks have in common: no cache, no kept results, retries only for what can heal; and which error is whose.

One decision: stage files alone say what is done. Prefect's cache sees neither our code nor our data, so it is off; a retried
task asks the stage which of its parts are still pending.

Whose fault is an error? `can_heal` says what a task tries again by itself. What is left after that is

* the run's: disk, network, settings, weights, a model or engine that cannot be loaded. It stops the run, whose next start may find it healed;
  quarantining for it would cost every case.
* the part's: an error raised while one part was made (PartError), rows that do not fit (RowsError). The part is tried alone, then quarantined, and
  the rest goes on.
* unsure: a GPU or machine out of memory, a process that died, an engine that broke down (EngineError), a volume that would not be read
  (InputError). As the part's, but only where other parts went well, before and after.

`Trial` keeps count of the parts given up. Where the last ones that were tried all failed, a part that went well before is made again, to see
whether it is the machine; where none ever went well, it is taken to be.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run
from pydantic import BaseModel, ConfigDict

from medad_core import stopping
from medad_core.config import FlowSettings, Settings, settings_from_yaml
from medad_core.errors import EngineError, EngineStartError, InputError, MedadError, PartError, RowsError
from medad_core.stages.common import in_one_line, stage_of
from medad_core.store import PartRecord

# What is missing, forbidden, full or of the wrong kind now will be so in a second. (Remote filesystems raise the classes without a number.)
LASTING = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
LASTING_NUMBERS = frozenset((errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL))
# What torch and Python say, as a RuntimeError, when a device fails or the memory of the machine is spent.
OF_THE_MACHINE = ("CUDA", "cuDNN", "NCCL", "allocate memory", "start new thread")
UNSURE_IN_A_ROW, SURE_IN_A_ROW, ALL_OF = 3, 10, 3  # parts given up, with none made between; and with none made at all
machine_is_well: ContextVar[bool] = ContextVar(
    "machine_is_well", default=False
)  # said by whoever saw it work a moment ago, with other cases
RunParts = Callable[[str, Settings, Sequence[int]], list[PartRecord]]


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
        return cls(
            stage=stage,
            parts=len(records),
            rows=sum(r.rows for r in records),
            done=sum(r.done for r in records),
            failed=sum(len(r.failed) for r in records),
        )


class Suspect(MedadError):
    """A part that could not be made, by its own fault as far as can be told. It says what the error said; `attempts` counts that task's."""

    def __init__(self, said: str, reason: str, unsure: bool, attempts: int) -> None:
        super().__init__(said)
        self.reason, self.unsure, self.attempts = reason, unsure, attempts

    def __reduce__(self):
        return type(self), (str(self), self.reason, self.unsure, self.attempts)


def can_heal(error: BaseException) -> bool:
    """Whether trying again may help: a filesystem or network that stuttered, a GPU that was full. A wrong setting never heals.

    The store turns system errors into StoreError; the system's own error is its cause. An engine was started anew already.
    """
    if any(isinstance(e, EngineError | EngineStartError) for e in (error, error.__cause__)):
        return False
    system = next((e for e in _causes(error) if isinstance(e, OSError)), None)
    if system is not None:
        return not isinstance(system, LASTING) and system.errno not in LASTING_NUMBERS
    return any(_is_full_gpu(e) for e in _causes(error))


def judged(error: Exception, attempts: int) -> Exception:
    """The error itself where it stops the run, a Suspect where the part may be at fault."""
    if isinstance(error, EngineError | InputError):
        return Suspect(str(error), in_one_line(error), True, attempts)
    if isinstance(error, RowsError):
        return Suspect(str(error), in_one_line(error), False, attempts)
    if isinstance(error, PartError) and not any(isinstance(e, OSError | ImportError) for e in _causes(error)):
        return Suspect(str(error), error.reason, any(_is_of_the_device(e) for e in _causes(error)), attempts)
    return error


def suspect_of(error: BaseException) -> Suspect:
    """What is known of a part that a task failed on; raises the error where it stops the run."""
    if isinstance(error, BrokenProcessPool):
        return Suspect("a worker process died in the middle of its work", "its worker process died", True, 1)
    if not isinstance(error, Suspect):
        raise error
    return error


def _causes(error: BaseException) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_full_gpu(error: BaseException) -> bool:
    return any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)


def _is_of_the_device(error: BaseException) -> bool:
    """Out of memory, or a GPU that failed: neither has one class in torch."""
    named = any(kind.__name__ in ("AcceleratorError", "FatalError", "OutOfMemoryError") for kind in type(error).__mro__)
    return (
        named
        or isinstance(error, MemoryError)
        or (isinstance(error, RuntimeError) and any(words in str(error) for words in OF_THE_MACHINE))
    )


@dataclass
class Trial:
    """The parts of one stage that are given up: number, attempts, and what was wrong. `made` counts those that have rows: a part without
    cases says nothing of the machine."""

    given_up: list[tuple[int, int, Suspect]] = field(default_factory=list)
    _made: int = 0
    _row: int = 0

    def give_up(self, number: int, attempts: int, suspect: Suspect, made: int) -> bool:
        """Give up a part. True where so many fail one after another that the machine is to be looked at."""
        self._row = self._row + 1 if made == self._made else 1
        self._made = made
        self.given_up.append((number, attempts, suspect))
        return self._row >= (UNSURE_IN_A_ROW if suspect.unsure else SURE_IN_A_ROW) and not (
            made == 0 and machine_is_well.get()
        )

    def trust(self) -> None:
        """The machine was looked at, and is well."""
        self._row = 0

    def in_doubt(self, made: int) -> bool:
        """Whether nothing was made since a part was given up, or the machine looked at."""
        return made > 0 and self._row > 0 and self._made == made

    def verdict(self, made: int) -> list[tuple[int, int, str]]:
        """At the end, the parts to quarantine: number, attempts, reason. Raises a suspect where it cannot be told from a fault of the machine."""
        for _, _, suspect in self.given_up:
            if made == 0 and not machine_is_well.get() and (suspect.unsure or len(self.given_up) >= ALL_OF):
                raise suspect
        return [(number, attempts, suspect.reason) for number, attempts, suspect in self.given_up]


def _retry(_task: Task, _run: Any, state: Any) -> bool:
    return can_heal(state.result(raise_on_failure=False))


OPTIONS = {"cache_policy": NO_CACHE, "persist_result": False, "retry_condition_fn": _retry}


def with_policy(task: Task, name: str, settings: FlowSettings) -> Task:
    """The task with the run name and the retries that the settings ask for."""
    return task.with_options(task_run_name=name, retries=settings.retries, retry_delay_seconds=settings.retry_delay_s)


def do_parts(stage: str, run_parts: RunParts, run: str, settings: str, numbers: Sequence[int]) -> Report:
    """Body of every part-wise task: the core makes the parts, and what goes wrong is judged here, where its causes are still known
    (they do not survive the way between processes)."""
    stopping.end_with_parent()
    try:
        return Report.of(stage, run_parts(run, settings_from_yaml(settings), _left_of(run, stage, numbers)))
    except Exception as error:
        verdict = judged(error, task_run.run_count or 1)
        if verdict is error:
            raise
        raise verdict from error


def _left_of(run: str, stage: str, numbers: Sequence[int]) -> list[int]:
    """The parts to do: all that were asked for, on a retry only those that the attempt before did not finish."""
    if (task_run.run_count or 1) <= 1:
        return list(numbers)
    pending = set(stage_of(run, stage).pending())
    return [number for number in numbers if number in pending]

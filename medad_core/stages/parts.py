"""Code that the four stages share: making a part, and the parts of a range one after another.

One decision: the caller of `run_parts` (a Prefect task, a plain loop, a Python prompt) decides the number of processes.
Each call loads the models once, and only if there is a part to make. Where cases do not depend on each other, threads
make them ahead of the one that writes; rows are written in the same order, and errors noticed in it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa

from medad_core import stopping
from medad_core.errors import CaseError, MedadError, PartError, in_one_line
from medad_core.run.run import Run
from medad_core.store import Item, PartRecord, Plan, Stage
from medad_core.surroundings.memory import keep_freed_memory

log = logging.getLogger(__name__)
OnPart = Callable[[PartRecord], None]  # called after every part


def plan_after(run: Run, upstream: str, name: str, fingerprint: dict[str, str]) -> Plan:
    """Plan a stage with the same parts as the finished stage `upstream`. Raises StoreError if that is not finished.

    If a case of `upstream` lost its rows, or has rows now, the stored plan follows.
    """
    before = run.stage(upstream)
    parts = before.finished_inputs()
    fields = {**fingerprint, upstream: before.plan().fingerprint_sha256}
    names = list(run.stages)
    after = [run.stages[later] for later in names[names.index(name) + 1 :]]
    return run.stage(name).prepare(fields, parts, after)


@dataclass
class CasesOfPart:
    """Rows of a part, case by case; cases that fail are collected in `failed`.

    The store consumes `rows()` while it writes, so memory never holds a whole part. `failed` is complete afterwards.
    `at_end` is called after the last case, before the part counts.
    """

    made: Iterable[Callable[[], pa.Table]]
    at_end: Callable[[], None]
    failed: list[Item] = field(default_factory=list)

    def rows(self) -> Iterator[pa.Table]:
        """The rows of every case that can be used."""
        for rows_of_case in self.made:
            stopping.check()
            try:
                yield rows_of_case()
            except CaseError as error:
                log.warning("%s is left out: %s", error.case_id, error.reason)
                self.failed.append(Item(key=error.case_id, reason=error.reason))
        self.at_end()


@contextmanager
def making(stage: Stage, number: int) -> Iterator[None]:
    """Make one part inside the block: an error of any other class than MedadError becomes PartError.

    A process that ends inside the block leaves a note (`Stage.begun`).
    """
    stopping.check()
    stage.begin(number)
    try:
        yield
    except MedadError:
        raise
    except Exception as error:
        raise PartError(f"{stage.name} part {number}", in_one_line(error)) from error
    finally:
        stage.leave(number)


def run_casewise(
    stage: Stage,
    numbers: Sequence[int],
    make: Callable[[str], pa.Table],
    on_part: OnPart,
    before_record: Callable[[int], None] = lambda _number: None,
    threads: int = 0,
) -> list[PartRecord]:
    """Write the given parts of a stage; `make(case_id)` returns the rows of one case.

    `before_record(number)` is called when the last case of a part was made, and before the part counts. With `threads`,
    so many of them call `make`, for cases of the part that is written.
    """
    records = []
    with _pool(threads) as pool:
        for number in numbers:
            calls = [partial(make, case_id) for case_id in stage.plan().parts[number].inputs]
            made = calls if pool is None else _ahead(pool, calls, threads)
            part = CasesOfPart(made, partial(before_record, number))
            with making(stage, number):
                records.append(stage.write_part(number, part.rows(), failed=part.failed))
            on_part(records[-1])
    return records


@contextmanager
def _pool(threads: int) -> Iterator[Executor | None]:
    """Threads for the block, which waits at its end for what they are doing and forgets the rest; None for 0."""
    pool = ThreadPoolExecutor(threads, "medad-case") if threads else None
    if pool is not None:
        keep_freed_memory()  # of a volume for the next one
    try:
        yield pool
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _ahead(pool: Executor, calls: Iterable[Callable[[], pa.Table]], threads: int) -> Iterator[Callable[[], pa.Table]]:
    """What gives the results of `calls`, in order; `pool` computes at most `threads` of them ahead of the caller."""
    begun: deque[Future[pa.Table]] = deque()
    for call in calls:
        begun.append(pool.submit(copy_context().run, call))
        if len(begun) > threads:
            yield begun.popleft().result
    while begun:
        yield begun.popleft().result


def ignore_part(_record: PartRecord) -> None:
    """An `OnPart` that does nothing."""

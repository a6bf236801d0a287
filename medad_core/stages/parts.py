"""Code that the four stages share: making a part, and the parts of a range one after another.

One decision: the caller of `run_parts` (a Prefect task, a plain loop, a Python prompt) decides the number of processes.
Each call loads the models once, and only if there is a part to make.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa

from medad_core import stopping
from medad_core.errors import CaseError, MedadError, PartError, in_one_line
from medad_core.run.run import Run
from medad_core.store import Item, PartRecord, Plan, Stage

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

    cases: Iterable[str]
    make: Callable[[str], pa.Table]
    at_end: Callable[[], None]
    failed: list[Item] = field(default_factory=list)

    def rows(self) -> Iterator[pa.Table]:
        """The rows of every case that can be used."""
        for case_id in self.cases:
            stopping.check()
            try:
                yield self.make(case_id)
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
) -> list[PartRecord]:
    """Write the given parts of a stage; `make(case_id)` returns the rows of one case.

    `before_record(number)` is called when the last case of a part was made, and before the part counts.
    """
    records = []
    for number in numbers:
        part = CasesOfPart(stage.plan().parts[number].inputs, make, partial(before_record, number))
        with making(stage, number):
            records.append(stage.write_part(number, part.rows(), failed=part.failed))
        on_part(records[-1])
    return records


def ignore_part(_record: PartRecord) -> None:
    """An `OnPart` that does nothing."""

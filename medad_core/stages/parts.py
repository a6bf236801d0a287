"""What the four stages share: how a part is made, and the parts of a range one after another.

One decision: whoever calls `run_parts` (a Prefect task, a plain loop, a Python prompt) decides in how many processes.
Models are loaded once per call of it, and only if there is a part to do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa

from medad_core import stopping
from medad_core.errors import CaseError, MedadError, PartError
from medad_core.faults.classify import in_one_line
from medad_core.run.run import Run
from medad_core.store import Item, PartRecord, Plan, Stage

log = logging.getLogger(__name__)
OnPart = Callable[[PartRecord], None]  # called after every part


def plan_after(run: Run, upstream: str, name: str, fingerprint: dict[str, str]) -> Plan:
    """Plan a stage part for part like the finished stage before it. Raises StoreError if that is not finished."""
    before = run.stage(upstream)
    parts = before.finished_inputs()
    return run.stage(name).prepare({**fingerprint, upstream: before.plan().fingerprint_sha256}, parts)


@dataclass
class CasesOfPart:
    """Rows of a part, case by case, with the cases that fail kept aside.

    The store consumes `rows()` while it writes, so a part never lies in memory whole; `failed` is complete afterwards.
    """

    cases: Iterable[str]
    make: Callable[[str], pa.Table]
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


@contextmanager
def making(stage: Stage, number: int) -> Iterator[None]:
    """Whatever goes wrong inside goes wrong with this part: errors that do not say what is wrong become PartError.

    A process that ends inside leaves a note of it (`Stage.begun`).
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
    stage: Stage, numbers: Sequence[int], make: Callable[[str], pa.Table], on_part: OnPart
) -> list[PartRecord]:
    """Write the given parts of a stage, `make(case_id)` giving the rows of one case."""
    records = []
    for number in numbers:
        part = CasesOfPart(stage.plan().parts[number].inputs, make)
        with making(stage, number):
            records.append(stage.write_part(number, part.rows(), failed=part.failed))
        on_part(records[-1])
    return records


def ignore_part(_record: PartRecord) -> None:
    """An `OnPart` for whoever does not follow the parts."""

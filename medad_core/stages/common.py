"""What the four part-wise stages share: their order on disk, and the loop over parts.

One decision: a stage is three functions, `plan(...)`, `run_parts(...)` and `Stage.finish()`; whoever calls them (a Prefect task, a
plain loop, a Python prompt) decides in how many processes. Models are loaded once per call of `run_parts`, and only if
there is a part to do.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa

from medad_core import stopping
from medad_core.config import Settings
from medad_core.errors import CaseError, MedadError, PartError
from medad_core.store import ANSWERS, MAPS, PROMPTS, SLICES, Item, PartRecord, Plan, Stage, join, write_text
from medad_core.store.files import sweep

log = logging.getLogger(__name__)
PART_STAGES = {"slices": SLICES, "maps": MAPS, "prompts": PROMPTS, "answers": ANSWERS}
QUARANTINED = "quarantined after "  # how the reason of such a case begins, in part records and in rejected.csv
Progress = Callable[[PartRecord], None]


def stage_of(run: str, name: str) -> Stage:
    """One of the stages slices, maps, prompts, answers of a run."""
    return Stage(run, name, PART_STAGES[name])


def plan_after(run: str, upstream: str, name: str, fingerprint: dict[str, str]) -> Plan:
    """Plan a stage part for part like the finished stage before it."""
    before = stage_of(run, upstream)
    before.require_finished()
    parts = [before.done_inputs(part.number) for part in before.plan().parts]
    return stage_of(run, name).prepare({**fingerprint, upstream: before.plan().fingerprint_sha256}, parts)


@dataclass
class Casewise:
    """Rows of a part, case by case, with the cases that fail kept aside.

    The store consumes `rows()` while it writes, so a part never lies in memory whole; `failed` is complete afterwards.
    """

    cases: Iterable[str]
    make: Callable[[str], pa.Table]
    failed: list[Item] = field(default_factory=list)

    def rows(self) -> Iterator[pa.Table]:
        for case_id in self.cases:
            stopping.check()
            try:
                yield self.make(case_id)
            except CaseError as error:
                log.warning("%s is left out: %s", error.case_id, error.reason)
                self.failed.append(Item(key=error.case_id, reason=error.reason))


@contextmanager
def making(stage: Stage, number: int) -> Iterator[None]:
    """Whatever goes wrong inside goes wrong with this part: errors that do not say themselves what is wrong become PartError. A process that
    ends inside leaves a note of it (`Stage.was_begun`)."""
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


def in_one_line(error: BaseException) -> str:
    """Such as `ValueError: too many dimensions`."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def run_casewise(
    stage: Stage, numbers: Sequence[int], make: Callable[[str], pa.Table], progress: Progress
) -> list[PartRecord]:
    """Write the given parts of a stage, `make(case_id)` giving the rows of one case."""
    records = []
    for number in numbers:
        part = Casewise(stage.plan().parts[number].inputs, make)
        with making(stage, number):
            records.append(stage.write_part(number, part.rows(), failed=part.failed))
        progress(records[-1])
    return records


def quarantine(run: str, name: str, number: int, attempts: int, why: str) -> PartRecord:
    """Record a part that could not be made: all of its cases failed, none has rows, and the stages after it go on without them.

    Deleting the record lets the same command try the part again.
    """
    stage = stage_of(run, name)
    reason = f"{QUARANTINED}{attempts} attempts: {why}"
    log.warning("%s part %d is %s", name, number, reason)
    with making(stage, number):
        return stage.write_part(
            number, [], failed=[Item(key=case_id, reason=reason) for case_id in stage.plan().parts[number].inputs]
        )


def sweep_run(run: str) -> None:
    """Remove the temporary files that killed writers left anywhere in a run."""
    for folder in (run, *(join(run, name, *below) for name in PART_STAGES for below in ((), ("_parts",)))):
        sweep(folder)


def write_rejected(run: str) -> list[tuple[str, str, str]]:
    """`RUN/rejected.csv`: case_id, stage, reason of every case that some stage could not use. Returns the rows."""
    rows = []
    for name in PART_STAGES:
        stage = stage_of(run, name)
        if stage.find_plan() is not None:
            rows += [(item.key, name, item.reason) for record in stage.records().values() for item in record.failed]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("case_id", "stage", "reason"))
    writer.writerows(sorted(rows))
    write_text(join(run, "rejected.csv"), text.getvalue())
    return sorted(rows)


def settings_fingerprint(settings: Settings, *keys: str) -> dict[str, str]:
    """The named sections of the settings as fingerprint fields."""
    tree = settings.model_dump(mode="json")
    found = {}
    for key in keys:
        value = tree
        for name in key.split("."):
            value = value[name]
        found[key] = str(value)
    return found

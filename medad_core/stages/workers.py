"""Parts of a stage that is named, for a worker of any kind: a task, a loop, a process of its own.

One decision: a worker is given references and opens the run itself; its errors are judged here, where their causes are
still known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from medad_core import stopping
from medad_core.config import Settings
from medad_core.faults.suspect import accuse
from medad_core.run.run import Run
from medad_core.store import PartRecord, Plan


class StageModule(Protocol):
    """What the module of a stage has."""

    def plan(self, run: Run) -> Plan:
        """Write the plan of the stage, or give back the stored one. Raises StoreError if it is of something else."""

    def run_parts(self, run: Run, numbers: Sequence[int]) -> list[PartRecord]:
        """Make the given parts."""


def stage_module(name: str) -> StageModule:
    """The module of a stage, which has its name; the libraries that it needs are imported now."""
    if name == "slices":
        from medad_core.stages import slices

        return slices
    if name == "maps":
        from medad_core.stages import maps

        return maps
    if name == "prompts":
        from medad_core.stages import prompts

        return prompts
    from medad_core.stages import answers

    return answers


def make_parts(uri: str, settings: Settings, name: str, numbers: Sequence[int], attempt: int = 1) -> list[PartRecord]:
    """Make parts of a stage; on a further attempt only those that the one before did not finish.

    Raises Suspect if a part is to blame, anything else where the run has to stop.
    """
    stopping.end_with_parent()
    run = Run.reopen(uri, settings)
    try:
        if attempt > 1:
            pending = set(run.stage(name).pending())
            numbers = [number for number in numbers if number in pending]
        return stage_module(name).run_parts(run, numbers)
    except Exception as error:
        judged = accuse(error, attempt)
        if judged is error:
            raise
        raise judged from error

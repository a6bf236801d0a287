"""Makes parts of a stage given by name, for any kind of worker: a task, a loop, a separate process.

One decision: a worker gets only references and opens the run itself. Its errors are classified here, because their
causes are lost when they are pickled.
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
    """The functions of a stage's module."""

    def plan(self, run: Run) -> Plan:
        """Write the plan of the stage, or return the stored one. Raises StoreError if its fingerprint differs."""

    def run_parts(self, run: Run, numbers: Sequence[int]) -> list[PartRecord]:
        """Make the given parts."""


def stage_module(name: str) -> StageModule:
    """The module of a stage, which has the stage's name. Imports the libraries that it needs."""
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
    """Make parts of a stage; from the second attempt on, only those that are still pending.

    Raises Suspect if a part may be at fault, any other error if the run must stop.
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

"""Makes parts of a stage given by name, for any kind of worker: a task, a loop, a separate process.

One decision: a worker gets only references and opens the run itself. Its errors are classified here, because their
causes are lost when they are pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from typing import Any, Protocol

from medad_core import stopping
from medad_core.config import Settings
from medad_core.faults.suspect import accuse
from medad_core.run.run import Run
from medad_core.stages.parts import OnPart, ignore_part
from medad_core.store import PartRecord, Plan

when_opened: list[Callable[[str], None]] = []  # called with the name of a stage whose models were opened here


class StageModule(Protocol):
    """The functions of a stage's module."""

    def plan(self, run: Run) -> Plan:
        """Write the plan of the stage, or return the stored one. Raises StoreError if its fingerprint differs."""

    def opened(self, run: Run) -> AbstractContextManager[Any]:
        """The models of the stage. Raises WeightsError if they are not those that the stage was planned with."""

    def run_parts(self, run: Run, numbers: Sequence[int], on_part: OnPart, models: Any) -> list[PartRecord]:
        """Make the given parts with models that `opened` gave."""


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


class Worker:
    """Makes ranges of parts of one stage, one after another, with a run and models that it opens once.

    After an error it opens them anew: an engine that broke down is not used again.
    """

    def __init__(self, uri: str, settings: Settings, stage: str) -> None:
        self.uri = uri
        self.settings = settings
        self.stage = stage
        self._run: Run | None = None
        self._models: Any = None
        self._open = ExitStack()

    def make(self, numbers: Sequence[int], attempt: int = 1) -> list[PartRecord]:
        """Make parts; from the second attempt on, only those that are still pending.

        Raises Suspect if a part may be at fault, any other error if the run must stop.
        """
        stopping.end_with_parent()
        try:
            return self._make(numbers, attempt)
        except Exception as error:
            self.close()
            judged = accuse(error, attempt)
            if judged is error:
                raise
            raise judged from error

    def _make(self, numbers: Sequence[int], attempt: int) -> list[PartRecord]:
        run = self._run or Run.reopen(self.uri, self.settings)
        if attempt > 1:
            pending = set(run.stage(self.stage).pending())
            numbers = [number for number in numbers if number in pending]
        if not numbers:
            return []
        module = stage_module(self.stage)
        if self._run is None:
            self._models = self._open.enter_context(module.opened(run))
            self._run = run
            for call in when_opened:
                call(self.stage)
        return module.run_parts(run, numbers, ignore_part, self._models)

    def close(self) -> None:
        """Give the models back."""
        self._run = self._models = None
        self._open.close()


def make_parts(uri: str, settings: Settings, stage: str, numbers: Sequence[int], attempt: int = 1) -> list[PartRecord]:
    """Make parts of a stage with a worker of their own; arguments and errors as `Worker.make`."""
    with closing(Worker(uri, settings, stage)) as worker:
        return worker.make(numbers, attempt)

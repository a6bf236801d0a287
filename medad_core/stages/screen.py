"""All stages in this process, without an orchestrator: cases in; predictions, metrics and page out.

    from medad_core.config import Settings
    from medad_core.stages.screen import screen

    results = screen("DATA", "RUN", Settings())

One decision: it differs from the flows only in how parts are called. Faults are supervised in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext

from medad_core.config import Settings
from medad_core.faults.classify import can_heal
from medad_core.faults.supervisor import Failure, OnFailure, Range
from medad_core.run.run import Run
from medad_core.stages.ahead import engine_imported_beside
from medad_core.stages.complete import complete_stage, plan_stage, require_cases
from medad_core.stages.evaluate import Results, evaluate_run
from medad_core.stages.workers import make_parts
from medad_core.store import PART_STAGES
from medad_core.surroundings.processes import spawn_context


def screen(data: str, out: str, settings: Settings | None = None, refresh: bool = False) -> Results:
    """Screen every case below `data` into the folder `out`; call it again to resume. Raises MedadError.

    A case whose volume or mask has changed since is refused by name; with `refresh` it is made again.
    """
    with Run.held(data, out, settings or Settings(), refresh) as run:
        for name in PART_STAGES:
            plan_stage(run, name)
            with engine_imported_beside(run.settings, name) if name == "maps" else nullcontext():
                progress = complete_stage(run, name, LoopExecutor(run, name))
            require_cases(run, progress)
        run.note(data)
        return evaluate_run(run)


class LoopExecutor:
    """See `Executor`: ranges one after another, in this process."""

    is_own_process = True

    def __init__(self, run: Run, name: str) -> None:
        self.run = run
        self.name = name

    def make(self, ranges: Sequence[Range], on_failure: OnFailure) -> list[Failure]:
        """See `Executor.make`."""
        failures = []
        for numbers in ranges:
            failure = self._make(numbers, self.run.settings.flow.retries)
            if failure is not None:
                on_failure(failure)
                failures.append(failure)
        return failures

    def make_alone(self, number: int) -> Failure | None:
        """See `Executor.make_alone`."""
        return self._make([number], retries=0)

    def make_apart(self, number: int) -> Failure | None:
        """See `Executor.make_apart`."""
        with ProcessPoolExecutor(1, spawn_context()) as pool:
            error = pool.submit(make_parts, self.run.uri, self.run.settings, self.name, [number]).exception()
        if isinstance(error, Exception):
            return Failure([number], error)
        if error is not None:
            raise error
        return None

    def _make(self, numbers: Range, retries: int) -> Failure | None:
        attempt = 0
        while True:
            attempt += 1
            try:
                make_parts(self.run.uri, self.run.settings, self.name, numbers, attempt)
                return None
            except Exception as error:
                if attempt > retries or not can_heal(error):
                    return Failure(numbers, error)
            time.sleep(self.run.settings.flow.retry_delay_s)

"""Runs a stage from its plan to its manifest: plan, make the pending parts, finish."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from medad_core.errors import MedadError
from medad_core.faults.supervisor import Executor, Supervisor
from medad_core.run.run import Run
from medad_core.stages.workers import stage_module
from medad_core.store import StageProgress


def plan_stage(run: Run, name: str) -> None:
    """Plan a stage of a run, or check that the stored plan is the same. Only one process may plan a stage."""
    stage_module(name).plan(run)


def complete_stage(
    run: Run, name: str, executor: Executor, ranges: int = 1, machine_is_well: bool = False
) -> StageProgress:
    """Make the pending parts of a planned stage with `executor`, in at most `ranges` ranges; finish the stage.

    A part that cannot be made is quarantined. Raises the error that stops the run. `machine_is_well`: the machine has
    just made parts of other cases.
    """
    stage = run.stage(name)
    pending = stage.pending()
    if pending or stage.manifest() is None:
        supervisor = Supervisor(stage, executor, run.settings.flow.retries, machine_is_well)
        supervisor.make(ranges_of(pending, ranges))
        stage.finish()
    run.write_rejected()
    return stage.progress()


def is_complete(run: Run) -> bool:
    """Whether every stage of a run is finished, by the settings and models of now, and no part is missing or damaged.

    Raises StoreError where a stage was made with others.
    """
    for name, stage in run.stages.items():
        if stage.find_plan() is None:
            return False
        plan_stage(run, name)
        if stage.manifest() is None or stage.pending():
            return False
    return True


def require_cases(run: Run, progress: StageProgress) -> None:
    """Raise MedadError if the stage `slices` left no case to go on with."""
    if progress.stage == "slices" and progress.done == 0:
        requested = progress.requested
        raise MedadError(f"none of the {requested} cases could be used; {run.uri}/rejected.csv gives the reasons")


def ranges_of(numbers: Sequence[int], count: int) -> list[list[int]]:
    """`numbers` in at most `count` runs of nearly equal length, in order."""
    count = min(count, len(numbers))
    bounds = [len(numbers) * step // count for step in range(count + 1)] if count else []
    return [list(numbers[start:stop]) for start, stop in itertools.pairwise(bounds)]

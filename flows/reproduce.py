"""The paper's table: cases in, every row fitted and scored on the same folds and seeds, one table out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from prefect import Task, flow
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner

from flows.cancellation import cancellable, stop_if_cancelled
from flows.executor import interruptible, task_runner
from flows.gpu import gpu_slot
from flows.parameters import DEFAULTS, SettingsParameter
from medad_core.config import Settings
from medad_core.environment import package_versions
from medad_core.errors import MedadError
from medad_core.permissions import set_mode
from medad_core.reproduce.units import LLM_ROWS, THROUGH_LLM, Unit, pending, units_of
from medad_core.run.info import RunInfo, write_run_info
from medad_core.store.lock import held
from tasks.policy import with_policy
from tasks.reproduce import (
    Reproduced,
    answer_units,
    fit_converter,
    fit_decoder,
    prepare_experiment,
    score_unit,
    write_table,
)

ON_THE_DECODER = (*THROUGH_LLM, "without-llm")
Item = dict[str, Any]  # the arguments of one task, without those that all tasks share


class RowsFailed(MedadError):
    """The table was made, but some rows failed. Raised so that the server shows the flow run as failed."""

    def __init__(self, made: Reproduced) -> None:
        rows = ", ".join(row for row, _ in made.failed)
        super().__init__(f"{len(made.failed)} rows of the table failed: {rows}; {made.text} says why")
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.made,)


def _run_name() -> str:
    return f"reproduce-{Path(flow_run.parameters['data']).name}-{date.today()}"


@flow(
    name="reproduce", description="Labelled cases to the paper's table.", persist_result=False, flow_run_name=_run_name
)
def reproduce(data: str, out: str, settings: SettingsParameter = DEFAULTS) -> Reproduced:
    """Fit and score every row of the table; run it again to resume.

    Failed rows are in the table with their reason. Raises RowsFailed at the end if there are any.
    """
    from medad_core.models.device import device_of

    set_mode(settings.store.mode)

    def work() -> Reproduced:
        with held(out), gpu_slot(device_of(settings)):
            made = _reproduce(data, out, settings)
        stop_if_cancelled()
        if made.failed:
            raise RowsFailed(made)
        return made

    return cancellable(work)


def _reproduce(data: str, out: str, settings: Settings) -> Reproduced:
    folds = with_policy(prepare_experiment, "prepare", settings.flow)(data, out, settings)
    write_run_info(out, RunInfo.of(settings, str(Path(data).resolve()), package_versions()))
    units = pending(out, units_of(settings.reproduce, folds))
    with interruptible(task_runner(settings.flow)) as runner:
        step = _Steps(runner, out, settings)
        decoded = {(item["fold"], item["seed"]) for item in step.each(fit_decoder, _decoders(units))}
        alive = [unit for unit in units if unit.row not in ON_THE_DECODER or (unit.fold, unit.seed) in decoded]
        step.each(score_unit, [vars(unit) for unit in alive if unit.row not in THROUGH_LLM])
        speakers = step.each(fit_converter, [vars(unit) for unit in alive if unit.row in LLM_ROWS])
        step.each(answer_units, [{"units": [tuple(unit.values()) for unit in speakers]}] if speakers else [])
        step.each(score_unit, [vars(unit) for unit in alive if unit.row == "shuffled"])
    return with_policy(write_table, "table", settings.flow)(out, settings)


def _decoders(units: Iterable[Unit]) -> list[Item]:
    """The decoders that units need: fold, seed and the rows of those units."""
    waiting: dict[tuple[int, int], list[str]] = {}
    for unit in units:
        if unit.row in ON_THE_DECODER:
            waiting.setdefault((unit.fold, unit.seed), []).append(unit.row)
    return [{"fold": fold, "seed": seed, "rows": rows} for (fold, seed), rows in waiting.items()]


class _Steps:
    """Submits the tasks of one kind and waits for all of them.

    Failed tasks have written their reason, so nothing is raised.
    """

    def __init__(self, runner: TaskRunner, out: str, settings: Settings) -> None:
        self.runner = runner
        self.flow = settings.flow
        self.shared = {"out": out, "settings": settings}

    def each(self, task: Task, items: Sequence[Item]) -> list[Item]:
        """Run `task` with the arguments of every item; returns the items that succeeded."""
        futures = []
        for item in items:
            words = (str(value) for value in item.values() if not isinstance(value, list))
            named = with_policy(task, "-".join([task.name, *words]), self.flow)
            futures.append(self.runner.submit(named, {**self.shared, **item}))
        for future in futures:
            future.wait()
        pairs = zip(items, futures, strict=True)
        return [item for item, future in pairs if future.state.is_completed() and future.result()]

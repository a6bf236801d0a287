"""The paper's table: cases in, every row fitted and scored on the same folds and seeds, one table out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path

from prefect import Task, flow
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner

from flows.gpu import gpu_slot
from flows.preflight import note_run
from flows.runner import interruptible, task_runner
from medad_core.config import Settings, settings_from_yaml
from medad_core.errors import MedadError
from medad_core.reproduce.units import LLM_ROWS, THROUGH_LLM, Unit, pending, units_of
from tasks.policy import with_policy
from tasks.reproduce import Reproduced, answer_units, fit_converter, fit_decoder, prepare_study, score_unit, write_table

ON_THE_DECODER = (*THROUGH_LLM, "without-llm")


class RowsFailed(MedadError):
    """The table is made, with rows that failed: the run is to be seen as one that failed, by whoever looks at the server."""

    def __init__(self, made: Reproduced) -> None:
        super().__init__(
            f"{len(made.failed)} rows of the table failed: {', '.join(row for row, _ in made.failed)}; {made.text} says why"
        )
        self.made = made

    def __reduce__(self):
        return type(self), (self.made,)


def _run_name() -> str:
    return f"reproduce-{Path(flow_run.parameters['data']).name}-{date.today()}"


@flow(
    name="reproduce", description="Labelled cases to the paper's table.", persist_result=False, flow_run_name=_run_name
)
def reproduce(data: str, out: str, settings: str = "") -> Reproduced:
    """Fit and score every row of the table; run it again to resume. Rows that fail are in the table with their reason; RowsFailed says so at the end."""
    from medad_core.stages.models import device_of

    chosen = settings_from_yaml(settings)
    with gpu_slot(device_of(chosen)):
        made = _reproduce(data, out, settings, chosen)
    if made.failed:
        raise RowsFailed(made)
    return made


def _reproduce(data: str, out: str, settings: str, chosen: Settings) -> Reproduced:
    folds = with_policy(prepare_study, "prepare", chosen.flow)(data, out, settings)
    note_run(data, out, chosen)
    units = pending(out, units_of(chosen.reproduce, folds))
    with interruptible(task_runner(chosen.flow)) as runner:
        step = _Steps(runner, out, settings, chosen)
        decoded = {(went["fold"], went["seed"]) for went in step.each(fit_decoder, _decoders(units))}
        alive = [unit for unit in units if unit.row not in ON_THE_DECODER or (unit.fold, unit.seed) in decoded]
        step.each(score_unit, [vars(unit) for unit in alive if unit.row not in THROUGH_LLM])
        speakers = step.each(fit_converter, [vars(unit) for unit in alive if unit.row in LLM_ROWS])
        step.each(answer_units, [{"units": [tuple(unit.values()) for unit in speakers]}] if speakers else [])
        step.each(score_unit, [vars(unit) for unit in alive if unit.row == "shuffled"])
    return with_policy(write_table, "table", chosen.flow)(out, settings)


def _decoders(units: Iterable[Unit]) -> list[dict]:
    """The decoders that units wait for: fold, seed and the rows of those units."""
    waiting: dict[tuple[int, int], list[str]] = {}
    for unit in units:
        if unit.row in ON_THE_DECODER:
            waiting.setdefault((unit.fold, unit.seed), []).append(unit.row)
    return [{"fold": fold, "seed": seed, "rows": rows} for (fold, seed), rows in waiting.items()]


class _Steps:
    """Submits the tasks of one kind and waits for all of them; what failed has left its reason, so nothing is raised."""

    def __init__(self, runner: TaskRunner, out: str, settings: str, chosen: Settings) -> None:
        self.runner, self.flow, self.common = runner, chosen.flow, {"out": out, "settings": settings}

    def each(self, task: Task, items: Sequence[dict]) -> list[dict]:
        """Run `task` on the arguments of every item; the items on which it went well."""
        futures = []
        for item in items:
            name = "-".join([task.name, *(str(value) for value in item.values() if not isinstance(value, list))])
            futures.append(self.runner.submit(with_policy(task, name, self.flow), {**self.common, **item}))
        for future in futures:
            future.wait()
        return [
            item for item, future in zip(items, futures, strict=True) if future.state.is_completed() and future.result()
        ]

"""The stages of a run as flows: plan, make the pending parts, finish.

One decision: each flow reads from the stage files what is left. So running a flow again resumes it, and running a
finished flow does nothing. Plans are made here and not in tasks, so only one process plans a stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from prefect import flow
from prefect.runtime import flow_run
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows.artifacts import progress_shown
from flows.cancellation import cancellable, stop_if_cancelled
from flows.executor import executor_of, range_count
from flows.gpu import gpu_slot
from flows.outcome import untagged
from flows.parameters import DEFAULTS, SettingsParameter
from medad_core.run.outcome import Outcome, outcome_of
from medad_core.run.run import Run
from medad_core.stages.complete import complete_stage, plan_stage
from medad_core.store import StageProgress
from medad_core.store.files import name_parts
from medad_core.store.lock import held
from tasks.policy import with_policy
from tasks.whole import evaluate_run as evaluate_task

Result = TypeVar("Result")


def _run_name() -> str:
    """Such as `maps-run7` or, of a batch of a cohort, `maps-cohort7-00001`."""
    return stage_run_name(flow_run.flow_name, flow_run.parameters["run"])


def stage_run_name(stage: str, run: str) -> str:
    """Such as `maps-run7` or, of a batch of a cohort, `maps-cohort7-00001`."""
    return "-".join([stage, *name_parts(run)])


OPTIONS = {"persist_result": False, "flow_run_name": _run_name}


@flow(name="slices", description="Volumes to slices.", **OPTIONS)
def slices(run: str, settings: SettingsParameter = DEFAULTS) -> StageProgress:
    """Cut the cohort of a run into slices."""
    with held(run):
        return cancellable(lambda: make_stage(Run.reopen(run, settings), "slices"))


@flow(name="maps", description="Slices to anomaly maps.", **OPTIONS)
def maps(run: str, settings: SettingsParameter = DEFAULTS) -> StageProgress:
    """Draw an anomaly map of every slice."""
    with held(run):
        return cancellable(lambda: make_stage(Run.reopen(run, settings), "maps"))


@flow(name="prompts", description="Anomaly maps to prompt embeddings.", **OPTIONS)
def prompts(run: str, settings: SettingsParameter = DEFAULTS) -> StageProgress:
    """Turn every map into tokens that the LLM can read."""
    with held(run):
        return cancellable(lambda: make_stage(Run.reopen(run, settings), "prompts"))


@flow(name="answers", description="Prompt embeddings to answers.", **OPTIONS)
def answers(run: str, settings: SettingsParameter = DEFAULTS) -> StageProgress:
    """Let the LLM answer for every slice whether there is an anomaly, and where."""
    with held(run):
        return cancellable(lambda: make_stage(Run.reopen(run, settings), "answers"))


@flow(name="evaluate", description="Stage files to predictions, metrics and page.", **OPTIONS)
def evaluate(run: str, settings: SettingsParameter | None = None) -> Outcome:
    """Write predictions, metrics and page of a finished run; without settings, with those of the run."""
    with held(run):
        return cancellable(lambda: evaluate_run(Run.reopen(run, settings)))


def make_stage(run: Run, name: str, machine_is_well: bool = False) -> StageProgress:
    """Plan and make one stage of an opened run, within a flow run. Raises the error that stops the run."""
    from medad_core.models.device import device_of  # torch takes seconds, and a deployment imports this module

    plan_stage(run, name)
    on_other_machines = run.settings.flow.runner == "ray"  # where Ray itself gives out the GPUs
    device = "cpu" if name == "slices" or on_other_machines else device_of(run.settings)
    ranges = range_count(run.settings.flow, name)
    with untagged(), progress_shown(run.stage(name)), gpu_slot(device), executor_of(run, name) as executor:
        return complete_stage(run, name, executor, ranges, machine_is_well)


def evaluate_run(run: Run) -> Outcome:
    """Predictions, metrics and page of an opened run, within a flow run."""
    with untagged():
        return with_policy(evaluate_task, "evaluate", run.settings.flow)(run.uri, run.settings)


def stage_within(run: Run, name: str, machine_is_well: bool = False) -> StageProgress:
    """Run a stage in its own flow run, inside that of a screening that has opened the run."""
    return flow_within(name, stage_run_name(name, run.uri), lambda: make_stage(run, name, machine_is_well))


def evaluate_within(run: Run) -> Outcome:
    """Run the evaluation in its own flow run, inside that of a screening that has opened the run.

    Results that are there, and are those of the stages as they are, are not made again.
    """
    done = outcome_of(run)
    if done is not None:
        return done
    return flow_within("evaluate", stage_run_name("evaluate", run.uri), lambda: evaluate_run(run))


def flow_within(name: str, run_name: str, work: Callable[[], Result]) -> Result:
    """Run `work` in its own flow run. It has no parameters, so Prefect does not serialise the opened run.

    Raises CancelledRun where it or the flow run around it is cancelled.
    """
    stop_if_cancelled()
    with _one_heartbeat():
        return flow(name=name, flow_run_name=run_name, persist_result=False)(lambda: cancellable(work))()


@contextmanager
def _one_heartbeat() -> Iterator[None]:
    """Disable the heartbeat of inner flows: the outer one is enough, and each takes a second to end."""
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield

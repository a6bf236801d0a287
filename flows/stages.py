"""The stages of a run as flows: plan, work off what is pending, finish.

One decision: each flow asks the stage files what is left, so running one again is the way to resume it, and running a finished
one does nothing. Plans are made here and not in tasks: there is one planner a stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect import Task, flow
from prefect.runtime import flow_run
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows.gpu import gpu_slot
from flows.runner import range_count, ranges_of, work_off
from flows.visible import progress_shown, untagged, words_of
from medad_core.config import settings_from_yaml
from medad_core.store import Progress, read_run_info
from tasks.parts import convert_parts, generate_parts, map_parts, preprocess_parts
from tasks.policy import with_policy
from tasks.whole import Outcome, evaluate_run


def _run_name() -> str:
    """Such as `maps-run7` or, of a batch of a cohort, `maps-cohort7-00001`."""
    return "-".join([flow_run.flow_name, *words_of(flow_run.parameters["run"])])


@contextmanager
def one_heartbeat() -> Iterator[None]:
    """For flows within a flow: the outer one's heartbeat says that the process lives, and to end another takes up to a second."""
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


OPTIONS = {"persist_result": False, "flow_run_name": _run_name}


@flow(name="slices", description="Volumes to slices.", **OPTIONS)
def slices(run: str, settings: str = "") -> Progress:
    """Cut the cohort of a run into slices."""
    from medad_core.run.cohort import cohort_of
    from medad_core.stages import slices

    slices.plan(run, settings_from_yaml(settings), cohort_of(run))
    return _complete("slices", preprocess_parts, run, settings)


@flow(name="maps", description="Slices to anomaly maps.", **OPTIONS)
def maps(run: str, settings: str = "") -> Progress:
    """Draw an anomaly map of every slice."""
    from medad_core.stages import maps

    maps.plan(run, settings_from_yaml(settings))
    return _complete("maps", map_parts, run, settings)


@flow(name="prompts", description="Anomaly maps to prompt embeddings.", **OPTIONS)
def prompts(run: str, settings: str = "") -> Progress:
    """Turn every map into tokens that the LLM can read."""
    from medad_core.stages import prompts

    prompts.plan(run, settings_from_yaml(settings))
    return _complete("prompts", convert_parts, run, settings)


@flow(name="answers", description="Prompt embeddings to answers.", **OPTIONS)
def answers(run: str, settings: str = "") -> Progress:
    """Let the LLM say for every slice whether and where something is wrong."""
    from medad_core.stages import answers

    answers.plan(run, settings_from_yaml(settings))
    # An engine takes seconds to start and fills a device: all that is pending goes to one.
    return _complete("answers", generate_parts, run, settings, ranges=1)


@flow(name="evaluate", description="Stage files to predictions, metrics and page.", **OPTIONS)
def evaluate(run: str, settings: str = "") -> Outcome:
    """Write predictions, metrics and page of a finished run; without settings, by those that the run was made with."""
    settings = settings or read_run_info(run).settings
    with untagged():
        return with_policy(evaluate_run, "evaluate", settings_from_yaml(settings).flow)(run, settings)


def _complete(name: str, task: Task, run: str, settings: str, ranges: int | None = None) -> Progress:
    from medad_core.stages.common import stage_of, write_rejected
    from medad_core.stages.models import device_of

    stage = stage_of(run, name)
    chosen = settings_from_yaml(settings)
    device = "cpu" if name == "slices" else device_of(chosen)
    with untagged(), progress_shown(stage), gpu_slot(device):
        work_off(task, run, settings, ranges_of(stage.pending(), ranges or range_count(chosen.flow)))
    stage.finish()
    write_rejected(run)
    return stage.progress()

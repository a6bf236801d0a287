"""One task a part-wise stage: a run, settings as YAML text and part numbers in, counts out."""

from __future__ import annotations

from prefect import task

from tasks.policy import OPTIONS, Report, do_parts

# The core's stage modules import torch; they are imported where a task runs, so that importing tasks stays light.


@task(name="slices", description="Read, turn and scale the volumes of a range of parts.", **OPTIONS)
def preprocess_parts(run: str, settings: str, numbers: list[int]) -> Report:
    from medad_core.stages import slices

    return do_parts("slices", slices.run_parts, run, settings, numbers)


@task(name="maps", description="Encode and decode the slices of a range of parts.", **OPTIONS)
def map_parts(run: str, settings: str, numbers: list[int]) -> Report:
    from medad_core.stages import maps

    return do_parts("maps", maps.run_parts, run, settings, numbers)


@task(name="prompts", description="Convert the maps of a range of parts into prompt embeddings.", **OPTIONS)
def convert_parts(run: str, settings: str, numbers: list[int]) -> Report:
    from medad_core.stages import prompts

    return do_parts("prompts", prompts.run_parts, run, settings, numbers)


@task(
    name="answers", description="Let the LLM answer the prompts of a range of parts; one engine a process.", **OPTIONS
)
def generate_parts(run: str, settings: str, numbers: list[int]) -> Report:
    from medad_core.stages import answers

    return do_parts("answers", answers.run_parts, run, settings, numbers)

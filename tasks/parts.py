"""One task a part-wise stage: a run, settings as YAML text and part numbers in, counts out."""

from __future__ import annotations

from prefect import task

from medad_core.config import settings_from_yaml
from tasks.policy import OPTIONS, Report, left_of

# The core's stage modules import torch; they are imported where a task runs, so that importing tasks stays light.


@task(name="slices", description="Read, turn and scale the volumes of a range of parts.", **OPTIONS)
def preprocess_parts(run: str, settings: str, numbers: list[int]) -> Report:
    from medad_core.stages import preprocess

    return Report.of("slices", preprocess.run_parts(run, settings_from_yaml(settings), left_of(run, "slices", numbers)))


@task(name="maps", description="Encode and decode the slices of a range of parts.", **OPTIONS)
def map_parts(run: str, settings: str, numbers: list[int]) -> Report:
    from medad_core.stages import maps

    return Report.of("maps", maps.run_parts(run, settings_from_yaml(settings), left_of(run, "maps", numbers)))


@task(name="prompts", description="Convert the maps of a range of parts into prompt embeddings.", **OPTIONS)
def convert_parts(run: str, settings: str, numbers: list[int]) -> Report:
    from medad_core.stages import convert

    return Report.of("prompts", convert.run_parts(run, settings_from_yaml(settings), left_of(run, "prompts", numbers)))


@task(name="answers", description="Let the LLM answer the prompts of a range of parts; one engine a process.", **OPTIONS)
def generate_parts(run: str, settings: str, numbers: list[int]) -> Report:
    from medad_core.stages import generate

    return Report.of("answers", generate.run_parts(run, settings_from_yaml(settings), left_of(run, "answers", numbers)))

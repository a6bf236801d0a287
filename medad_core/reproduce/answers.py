"""Answers of the LLM for the rows that speak.

One decision: the answers of all folds and seeds go through one engine, because starting one costs half a minute, and
a process can hold but one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from medad_core.config import Settings
from medad_core.llm.engine import llm_folder, open_engine
from medad_core.llm.grammar import parse
from medad_core.llm.prompt import Prompt
from medad_core.llm.protocol import Engine
from medad_core.models.converter import MAP_TOKENS, MOST_TOKENS
from medad_core.models.device import device_of, settle_torch
from medad_core.models.text import load_sentences
from medad_core.reproduce.experiment import open_experiment
from medad_core.reproduce.proposed import grids_of, load_tokens
from medad_core.reproduce.scoring import decoder_maps, frame_of, scored_slices
from medad_core.reproduce.units import Unit, write_unit
from medad_core.training.features import map_tokens


@contextmanager
def speaking(settings: Settings) -> Iterator[tuple[Engine, Prompt]]:
    """An LLM engine for as many units as there are."""
    settle_torch(settings)
    prompt = Prompt(llm_folder(settings.llm.model, settings.llm.lora, where=settings.models), settings.llm.template)
    most = max(len(load_sentences().knowledge), MAP_TOKENS)  # `anomalygpt` has nine base tokens in place of knowledge
    engine = open_engine(prompt, settings.llm, prompt.length(most, MOST_TOKENS), device_of(settings))
    try:
        yield engine, prompt
    finally:
        engine.close()


def answer_unit(out: str, unit: Unit, settings: Settings, engine: Engine, prompt: Prompt) -> None:
    """Let the LLM answer for the test slices of a unit, and keep scores and answers; a verdict needs no validation."""
    experiment = open_experiment(out)
    slices = scored_slices(experiment, unit.fold, experiment.load(out), settings)
    grids = grids_of(out, unit.fold, unit.seed)
    converter = load_tokens(out, unit)
    collected = decoder_maps(slices, grids, settings)
    frame = frame_of(experiment, unit.fold, slices, np.array(collected.scores))
    frame = frame.assign(map_score=frame["score"])
    test = np.flatnonzero(frame["split"] == "test")
    tokens = map_tokens(converter, [slices.picks[at] for at in test], grids)
    generations = engine.generate(prompt.assemble(converter.knowledge_tokens().numpy(), tokens))
    answers = [parse(generation.text) for generation in generations]
    frame = frame.iloc[test].assign(
        score=[generation.p_yes for generation in generations],
        answer=[generation.text for generation in generations],
        answer_parsed=[answer is not None for answer in answers],
        verdict=[answer and answer.verdict for answer in answers],
        location=[answer and answer.location for answer in answers],
    )
    write_unit(out, unit, collected.scored(frame, experiment, settings.reproduce.gallery))

"""Prompt embeddings to answers: the frozen LLM speaks, its sentences are parsed, in `RUN/answers/`."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pyarrow as pa

from medad_core.config import Settings
from medad_core.llm.answers import parse
from medad_core.llm.engine import Engine, Generation, open_engine
from medad_core.models.converter import MAP_TOKENS
from medad_core.stages.common import Progress, plan_after, stage_of
from medad_core.stages.models import answers_fingerprint, device_of, load_converter_of, load_prompt_of
from medad_core.stages.rows import tokens_of
from medad_core.store import ANSWERS, PartRecord, Plan


def plan(run: str, settings: Settings) -> Plan:
    """One part of answers for each part of prompts."""
    return plan_after(run, "prompts", "answers", answers_fingerprint(settings))


def run_parts(run: str, settings: Settings, numbers: Sequence[int], progress: Progress = lambda _: None, engine: Engine | None = None) -> list[PartRecord]:
    """Answer the prompts of the given parts; an engine is started where none is given, and closed again."""
    if not numbers:
        return []
    prompt, knowledge = load_prompt_of(settings), load_converter_of(settings).knowledge_tokens().numpy()
    prompts, answers, records = stage_of(run, "prompts"), stage_of(run, "answers"), []
    own = engine is None
    engine = engine or open_engine(prompt, settings.llm, prompt.length(len(knowledge), MAP_TOKENS), device_of(settings))
    try:
        for number in numbers:
            started = time.perf_counter()
            table = prompts.read_part(number)
            generations = engine.generate(prompt.assemble(knowledge, tokens_of(table))) if len(table) else []
            records.append(answers.write_part(number, _answer_rows(table, generations), seconds=time.perf_counter() - started))
            progress(records[-1])
    finally:
        if own:
            engine.close()
    return records


def _answer_rows(keys: pa.Table, generations: Sequence[Generation]) -> pa.Table:
    parsed = [parse(generation.text) for generation in generations]
    return pa.table(
        {
            "case_id": keys["case_id"],
            "slice_index": keys["slice_index"],
            "answer": [generation.text for generation in generations],
            "answer_parsed": [answer is not None for answer in parsed],
            "verdict": [answer and answer.verdict for answer in parsed],
            "location": [answer and answer.location for answer in parsed],
            "p_yes": [generation.p_yes for generation in generations],
            "finish_reason": [generation.finish_reason for generation in generations],
            "tokens": [generation.tokens for generation in generations],
        },
        schema=ANSWERS,
    )

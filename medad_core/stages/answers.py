"""Prompt embeddings to answers: the frozen LLM answers, and its sentences are parsed. Writes `RUN/answers/`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial

import pyarrow as pa

from medad_core.llm.engine import open_engine
from medad_core.llm.grammar import parse
from medad_core.llm.protocol import Engine, Generation
from medad_core.llm.restarting import RestartingEngine, captured_engine_log
from medad_core.models.device import device_of
from medad_core.run.fingerprints import answers_fingerprint, check_planned
from medad_core.run.run import Run
from medad_core.stages.loading import load_converter_of, load_prompt_of
from medad_core.stages.parts import OnPart, ignore_part, making, plan_after
from medad_core.stages.rows import tokens_of
from medad_core.store import ANSWERS, PartRecord, Plan


def plan(run: Run) -> Plan:
    """One part of answers for each part of prompts."""
    return plan_after(run, "prompts", "answers", run.models.answers)


def run_parts(
    run: Run, numbers: Sequence[int], on_part: OnPart = ignore_part, engine: Engine | None = None
) -> list[PartRecord]:
    """Answer the prompts of the given parts.

    If no engine is given, one is started, restarted once if it breaks down, and closed at the end. Raises EngineError
    if it breaks down again, naming its log, `RUN/answers/engine.log`.
    """
    if not numbers:
        return []
    settings = run.settings
    check_planned("answers", run.stage("answers").plan().fingerprint, answers_fingerprint(settings))
    prompt = load_prompt_of(settings)
    converter = load_converter_of(settings)
    knowledge = converter.knowledge_tokens().numpy()
    prompts = run.stage("prompts")
    answers = run.stage("answers")
    positions = prompt.length(len(knowledge), converter.tokens)
    start = partial(open_engine, prompt, settings.llm, positions, device_of(settings))
    records = []
    with _engine(engine, start, answers.uri) as opened:
        for number in numbers:
            started = time.perf_counter()
            with making(answers, number):
                table = prompts.read_part(number)
                generations = opened.generate(prompt.assemble(knowledge, tokens_of(table))) if len(table) else []
                rows = _answer_rows(table, generations)
                records.append(answers.write_part(number, rows, seconds=time.perf_counter() - started))
            on_part(records[-1])
    return records


@contextmanager
def _engine(given: Engine | None, start: Callable[[], Engine], folder: str) -> Iterator[Engine]:
    """The given engine, or a new one that is closed when the block ends."""
    if given is not None:
        yield given
        return
    with captured_engine_log(folder) as log_file, closing(RestartingEngine(start, log_file)) as engine:
        yield engine


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

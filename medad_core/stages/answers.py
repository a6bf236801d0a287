"""Prompt embeddings to answers: the frozen LLM answers, and its sentences are parsed. Writes `RUN/answers/`.

One decision: where several questions are asked, a slice has one row a question, in their order. The soft tokens are the
same for all; only the words before them differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from medad_core.config import Settings
from medad_core.llm.engine import open_engine
from medad_core.llm.grammar import parse
from medad_core.llm.prompt import Prompt
from medad_core.llm.protocol import Engine, Generation
from medad_core.llm.questions import PRESENCE, Question
from medad_core.llm.restarting import RestartingEngine, captured_engine_log
from medad_core.llm.temperature import tempered
from medad_core.models.device import device_of
from medad_core.models.weights import converter_facts, weights_folder
from medad_core.run.fingerprints import answers_fingerprint, asked_questions, check_planned
from medad_core.run.run import Run
from medad_core.stages.loading import load_converter_of, load_prompt_of
from medad_core.stages.parts import OnPart, ignore_part, making, plan_after
from medad_core.stages.rows import tokens_of
from medad_core.store import ANSWERS, PartRecord, Plan
from medad_core.store.schemas import ASKED


def plan(run: Run) -> Plan:
    """One part of answers for each part of prompts."""
    return plan_after(run, "prompts", "answers", run.models.answers)


@contextmanager
def opened(run: Run, engine: Engine | None = None) -> Iterator[Speaker]:
    """The questions of the run, and the engine that answers them.

    If no engine is given, one is started, restarted once if it breaks down, and closed when the block ends. Raises
    WeightsError if the LLM is not the one that the stage was planned with.
    """
    settings = run.settings
    stage = run.stage("answers")
    check_planned("answers", stage.plan().fingerprint, answers_fingerprint(settings))
    asking = Asking.of(settings, asked_questions(settings))
    with _engine(engine, partial(asking.open_engine, settings), stage.uri) as answering:
        yield Speaker(asking, answering)


def run_parts(
    run: Run, numbers: Sequence[int], on_part: OnPart = ignore_part, speaker: Speaker | None = None
) -> list[PartRecord]:
    """Answer the prompts of the given parts. The speaker is opened if not given.

    Raises EngineError if its engine breaks down for the second time, naming its log, `RUN/answers/engine.log`.
    """
    if not numbers:
        return []
    prompts = run.stage("prompts")
    answers = run.stage("answers")
    records = []
    with nullcontext(speaker) if speaker is not None else opened(run) as speaking:
        for number in numbers:
            started = time.perf_counter()
            with making(answers, number):
                rows = speaking.asking.rows(prompts.read_part(number), speaking.engine)
                seconds = time.perf_counter() - started
                records.append(answers.write_part(number, rows, seconds=seconds, made_with=speaking.engine.made_with))
            on_part(records[-1])
    return records


@dataclass(frozen=True)
class Asking:
    """Questions as an engine gets them, in the words of screening, and what their prompts share.

    `knowledge` (K, width) float32 are the tokens of the converter, `positions` is the length of the longest prompt,
    `temperature` that of p(yes) for presence.
    """

    questions: tuple[Question, ...]
    prompts: tuple[Prompt, ...]
    knowledge: np.ndarray
    positions: int
    temperature: float

    @classmethod
    def of(cls, settings: Settings, questions: Sequence[Question]) -> Asking:
        """The questions with the LLM and the weights of the settings. Raises WeightsError."""
        prompt = load_prompt_of(settings)
        converter = load_converter_of(settings)
        knowledge = converter.knowledge_tokens().numpy()
        temperature = converter_facts(weights_folder(settings.models.weights)).temperature
        prompts = tuple(prompt.asking(question.worded()) for question in questions)
        positions = max(asked.length(len(knowledge), converter.tokens) for asked in prompts)
        return cls(tuple(questions), prompts, knowledge, positions, temperature)

    def open_engine(self, settings: Settings) -> Engine:
        """The engine of the settings, for these prompts. Raises as `open_engine` does."""
        return open_engine(self.prompts[0], settings.llm, self.positions, device_of(settings))

    def rows(self, table: pa.Table, engine: Engine) -> pa.Table:
        """The rows of answers to rows of prompts."""
        soft = tokens_of(table) if len(table) else None
        answered = [
            [] if soft is None else engine.generate(asked.assemble(self.knowledge, soft), _held_to(question))
            for question, asked in zip(self.questions, self.prompts, strict=True)
        ]
        return _answer_rows(table, self.questions, answered, self.temperature)


@dataclass(frozen=True)
class Speaker:
    """What answers the prompts of a run: its questions, and an engine that runs."""

    asking: Asking
    engine: Engine


@contextmanager
def _engine(given: Engine | None, start: Callable[[], Engine], folder: str) -> Iterator[Engine]:
    """The given engine, or a new one that is closed when the block ends."""
    if given is not None:
        yield given
        return
    with captured_engine_log(folder) as log_file, closing(RestartingEngine(start, log_file)) as engine:
        yield engine


def _held_to(question: Question) -> Sequence[str]:
    """The sentences of a question; those of presence are the template's."""
    return () if question.family == PRESENCE else tuple(question.answers)


def _answer_rows(
    keys: pa.Table, questions: Sequence[Question], answered: Sequence[Sequence[Generation]], temperature: float
) -> pa.Table:
    """Rows of one part, `answered` question by question; where there is but one, its columns are those of ANSWERS.

    `temperature` is that of p(yes) for presence.
    """
    asked = [question for _ in range(len(keys)) for question in questions]
    generations = [generation for of_slice in zip(*answered, strict=True) for generation in of_slice]
    of_row = np.repeat(np.arange(len(keys)), len(questions))
    keys = keys.select(["case_id", "slice_index"]).take(of_row)
    is_presence = np.array([question.family == PRESENCE for question in asked], bool)
    p_yes = np.array([generation.p_yes for generation in generations], float)
    p_yes[is_presence] = tempered(p_yes[is_presence], temperature)
    p_yes[~np.array([question.is_yes_or_no for question in asked], bool)] = np.nan
    parsed = [
        parse(generation.text) if asks else None for generation, asks in zip(generations, is_presence, strict=True)
    ]
    values = [question.read(generation.text) for question, generation in zip(asked, generations, strict=True)]
    rows = pa.table(
        {
            "case_id": keys["case_id"],
            "slice_index": keys["slice_index"],
            "answer": [generation.text for generation in generations],
            "answer_parsed": [value is not None for value in values],
            "verdict": [answer and answer.verdict for answer in parsed],
            "location": [answer and answer.location for answer in parsed],
            "p_yes": p_yes,
            "finish_reason": [generation.finish_reason for generation in generations],
            "tokens": [generation.tokens for generation in generations],
        },
        schema=ANSWERS,
    )
    if len(questions) == 1:
        return rows
    names = pa.array([question.name for question in asked], pa.string())
    return rows.append_column(ASKED[0], names).append_column(ASKED[1], pa.array(values, pa.string()))

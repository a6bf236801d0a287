"""Whether the servers of the settings can answer for a run.

One decision: they are asked before anything is written, with the prompts that the run will ask of them, so that a wrong
address, key or model costs seconds and not the hours of the stages before the answers.
"""

from __future__ import annotations

from medad_core.config import Settings
from medad_core.llm.engine import SERVED, llm_folder
from medad_core.llm.prompt import Prompt
from medad_core.models.weights import load_converter, weights_folder
from medad_core.run.fingerprints import asked_questions, converter_surroundings, wording


def check_served(settings: Settings) -> None:
    """Raise UsageError where a server of `llm.endpoints` cannot be used; with another engine, nothing is asked."""
    if settings.llm.engine != SERVED:
        return
    from medad_core.llm.endpoint import check_endpoints

    prompt = Prompt(llm_folder(settings.llm.model, settings.llm.lora, where=settings.models), *wording(settings))
    converter = load_converter(weights_folder(settings.models.weights), converter_surroundings(settings))
    questions = [prompt.asking(question.worded()) for question in asked_questions(settings)]
    knowledge = len(converter.knowledge_tokens())
    positions = max(asked.length(knowledge, converter.tokens) for asked in questions)
    check_endpoints(prompt, settings.llm, positions)

"""Templates: the words around the soft tokens of a prompt.

One decision: a template is a text with marks where soft tokens go. A whole cohort shares what comes before the first
token of a slice, so a template puts there all that it may (medad_core/README.md, "Prompt and answer").
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from medad_core.errors import WeightsError, first_line
from medad_core.llm.grammar import ANOMALYGPT_GRAMMAR, GRAMMAR, QUESTION
from medad_core.llm.template_trial import check_template
from medad_core.models.loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM = "You are a radiologist."
TODAY = date(2024, 7, 26)  # the date that Llama 3's own template falls back to
# Stand for soft tokens while a template is rendered; control pictures occur in no template.
KNOWLEDGE = "\u2402knowledge\u2403"
IMAGE = "\u2402image\u2403"
MAP = "\u2402map\u2403"
MARKS = (KNOWLEDGE, IMAGE, MAP)


@dataclass(frozen=True)
class Template:
    """The words around soft tokens.

    `starts` says whether a prompt begins with the tokenizer's token for the start of a text. `end` follows an answer,
    "" for the LLM's own end token. `sentences` are the answers that the LLM is meant to give.
    """

    name: str
    starts: bool
    end: str
    sentences: tuple[str, ...]

    def render(self, tokenizer: PreTrainedTokenizerBase, image: bool, question: str = QUESTION) -> str:
        """The prompt with marks for soft tokens; `image` where every slice has a token of its joint-space embedding.

        Raises WeightsError where the template has no place for that token.
        """
        return _chat(tokenizer, image, question) if self.name == "chat" else _anomalygpt(image, question)


def _chat(tokenizer: PreTrainedTokenizerBase, image: bool, question: str) -> str:
    """The tokenizer's own chat template: question and knowledge are constant and come first, the map last."""
    if image:
        raise WeightsError(
            "llm.template: chat has no place for the image's embedding, which these weights give; set llm.template=auto"
        )
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{question}\n{KNOWLEDGE}{MAP}"}]
    # Llama 3's template contains today's date unless one is given. A prompt must be the same tomorrow.
    dated = {"date_string": TODAY.strftime("%d %b %Y"), "strftime_now": TODAY.strftime}
    try:
        check_template(tokenizer.get_chat_template(), messages)
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **dated)
    except (jinja2.TemplateError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        raise WeightsError(
            f"llm.template: the tokenizer's chat template cannot be used ({first_line(error)}); "
            "get the tokenizer's files again, or set llm.template=anomalygpt"
        ) from error
    if [text.count(mark) for mark in (KNOWLEDGE, MAP)] != [1, 1]:
        raise WeightsError(
            "llm.template: the tokenizer's chat template does not give the question once, as it was asked; "
            "set llm.template=anomalygpt, or choose another LLM"
        )
    return text


def _anomalygpt(image: bool, question: str) -> str:
    """AnomalyGPT's form of Vicuna's first conversation. The image comes before all else, so little is shared."""
    picture = f"<Img>{IMAGE}</Img> " if image else ""
    return f"### Human: {picture}{KNOWLEDGE}{MAP}{question}\n### Assistant:"


TEMPLATES = {
    "chat": Template("chat", False, "", tuple(GRAMMAR)),
    "anomalygpt": Template("anomalygpt", True, "\n###", tuple(GRAMMAR | ANOMALYGPT_GRAMMAR)),
}


@dataclass(frozen=True)
class Wording:
    """The tokenizer of an LLM, the template, and the prompt in that template, with marks for soft tokens."""

    tokenizer: PreTrainedTokenizerBase
    template: Template
    text: str

    def length(self, answer: str) -> int:
        """How many tokens an answer has, with what ends it."""
        tokens = self.tokenizer.encode(answer + self.template.end, add_special_tokens=False)
        return len(tokens) + (not self.template.end)


def word(folder: Path, template: str, image: bool) -> Wording:
    """The wording of a prompt; `template` and `image` as in `Prompt`.

    Raises WeightsError where there is no tokenizer, or the template cannot be used with it.
    """
    tokenizer = load_tokenizer(folder)
    has_chat = bool(tokenizer.chat_template)
    if template == "chat" and not has_chat:
        raise WeightsError(
            f"llm.template: the tokenizer of {folder.name} has no chat template; "
            "set llm.template=anomalygpt, or choose an instruction-tuned model"
        )
    if template == "auto":
        template = "chat" if has_chat else "anomalygpt"
    chosen = TEMPLATES[template]
    return Wording(tokenizer, chosen, chosen.render(tokenizer, image))


def wording_sha256(folder: Path, template: str, image: bool) -> str:
    """Hash of what an LLM is asked and may answer, as its tokenizer spells it. Raises as `word` does."""
    wording = word(folder, template, image)
    tokenizer = wording.tokenizer
    texts = (wording.text, *wording.template.sentences)
    spelled = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    facts = [spelled, wording.template.end, tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

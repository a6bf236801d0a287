"""Answers that are held to sentences: where they may stop, and how they are read.

One decision: an answer stops as soon as one sentence is left. The LLM could say nothing but the rest of it, so no
engine generates that, and the sentence is read as if it had.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from medad_core.llm.prompt import Prompt


@dataclass(frozen=True)
class Held:
    """The sentences that answers to a prompt are held to."""

    prompt: Prompt
    sentences: tuple[str, ...]

    @classmethod
    def to(cls, prompt: Prompt, sentences: Sequence[str] = ()) -> Held:
        """`sentences` are what may be answered, the template's if none are given."""
        return cls(prompt, tuple(sentences) or tuple(prompt.template.sentences))

    @cached_property
    def beginnings(self) -> dict[str, str]:
        """Each sentence under the shortest beginning that is nowhere in another one: "N" stands for "No, ...".

        An answer that begins so can only be that sentence. A sentence that is part of another one is not here: it ends
        as the LLM ends it.
        """
        begun = {_beginning(sentence, self.sentences): sentence for sentence in self.sentences}
        return {beginning: sentence for beginning, sentence in begun.items() if beginning is not None}

    def decided(self, tokens: Sequence[int]) -> str | None:
        """The only sentence that generated tokens can go on to; None where there are several, or none."""
        text = self.prompt.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        text = text.lstrip()  # a tokenizer of words begins a text with a space
        begun = (sentence for beginning, sentence in self.beginnings.items() if text.startswith(beginning))
        return next((sentence for sentence in begun if sentence.startswith(text)), None)

    def read_answer(self, tokens: list[int]) -> tuple[str, bool, int]:
        """As `Prompt.read_answer`, but a sentence that is decided is whole and has ended, with the tokens until then.

        Where tokens are not those of a sentence, nothing has held them to it, and they are read as they are.
        """
        sentence = self.decided(tokens)
        if sentence is None:
            return self.prompt.read_answer(tokens)
        count = next(count for count in range(1, len(tokens) + 1) if self.decided(tokens[:count]) is not None)
        return sentence, True, count


def _beginning(sentence: str, sentences: Iterable[str]) -> str | None:
    others = [other for other in sentences if other != sentence]
    begun = (sentence[:stop] for stop in range(1, len(sentence) + 1))
    return next((text for text in begun if not any(text in other for other in others)), None)

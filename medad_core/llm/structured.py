"""Answers held to the grammar: which tokens may follow, and how little of a sentence must be generated.

Two decisions. Spelling decides what may follow, not one tokenization: any token that continues some sentence is
allowed, and after a whole sentence only the LLM's end token. Greedy choice among those is then the same in every
engine. And an answer ends as soon as only one sentence is left: the LLM could say nothing but the rest of it, so no
engine generates that, and the sentence is read as if it had.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from weakref import WeakKeyDictionary

from torch import Tensor

from medad_core.llm.prompt import Prompt


class Held:
    """Sentences that answers to a prompt are held to, the template's if none are given.

    `spelled` are they as tokens spell them, `spelling` is what those tokens spell that occur in one of them.
    `beginnings` tell the sentences apart: an answer that begins so can only go on as one of them, as after "N" or after
    "Yes, there is an anomaly at the l". A sentence that is part of another one has none.
    """

    def __init__(self, prompt: Prompt, sentences: Sequence[str] = ()) -> None:
        self.sentences = tuple(sentences) or tuple(prompt.template.sentences)
        self.spelled = prompt.spelled(self.sentences)
        self.spelling = _spelling(prompt, self.spelled)
        begun = {_beginning(sentence, self.sentences): sentence for sentence in self.sentences}
        self._begun = {beginning: sentence for beginning, sentence in begun.items() if beginning is not None}

    @property
    def beginnings(self) -> tuple[str, ...]:
        """The texts after which nothing more need be generated."""
        return tuple(self._begun)

    def decided(self, tokens: Sequence[int]) -> tuple[str, int] | None:
        """The sentence that generated tokens leave, and how many of them decide it; None where they leave others."""
        text = ""
        for count, token in enumerate(tokens, 1):
            text += self.spelling.get(token, "\n")  # a line break is in no sentence
            for beginning, sentence in self._begun.items():
                if text.lstrip(" ").startswith(beginning):
                    return sentence, count
        return None


_made: WeakKeyDictionary[Prompt, dict[tuple[str, ...], Held]] = WeakKeyDictionary()


def held_to(prompt: Prompt, sentences: Sequence[str] = ()) -> Held:
    """`Held`, made once for a prompt, because it reads the whole vocabulary."""
    made = _made.setdefault(prompt, {})
    key = tuple(sentences)
    if key not in made:
        made[key] = Held(prompt, key)
    return made[key]


def read_answer(prompt: Prompt, tokens: list[int], held: Held | None) -> tuple[str, bool, int]:
    """As `Prompt.read_answer`; where answers are held to sentences, one that is decided is whole and has ended."""
    decided = None if held is None else held.decided(tokens)
    if decided is None:
        return prompt.read_answer(tokens)
    sentence, count = decided
    return sentence, True, count


class AllowedTokens:
    """Which tokens may follow: a `prefix_allowed_tokens_fn` of Transformers."""

    def __init__(self, prompt: Prompt, held: Held) -> None:
        self.sentences = held.spelled
        self.end = prompt.tokenizer.eos_token_id
        self.spelling = held.spelling
        self.after = lru_cache(maxsize=None)(self._after)

    def __call__(self, _row: int, tokens: Tensor) -> list[int]:
        """Ids that may follow `tokens` (1 + t,): the end token in place of the prompt, then t generated tokens."""
        generated = tokens[1:].tolist()
        if self.end in generated:
            return [self.end]  # an answer that has ended keeps on ending while others go on
        return self.after("".join(self.spelling[token] for token in generated))

    def _after(self, text: str) -> list[int]:
        """Token ids that may follow the beginning `text` of a sentence."""
        if text in self.sentences:
            return [self.end]
        endings = [sentence[len(text) :] for sentence in self.sentences if sentence.startswith(text)]
        beginnings = {ending[:stop] for ending in endings for stop in range(1, len(ending) + 1)}
        return [token for token, piece in self.spelling.items() if piece in beginnings]


def _spelling(prompt: Prompt, sentences: Iterable[str]) -> dict[int, str]:
    """What the tokens spell that occur in some sentence, special tokens aside."""
    parts = set().union(*map(_substrings, sentences))
    special = set(prompt.tokenizer.all_special_ids)
    usual = (token for token in range(len(prompt.tokenizer)) if token not in special)
    texts = {token: prompt.token_text(token) for token in usual}
    return {token: text for token, text in texts.items() if text in parts}


def _beginning(sentence: str, sentences: Iterable[str]) -> str | None:
    """The shortest beginning of a sentence that is nowhere in another one."""
    others = [other for other in sentences if other != sentence]
    begun = (sentence[:stop] for stop in range(1, len(sentence) + 1))
    return next((text for text in begun if not any(text in other for other in others)), None)


def _substrings(text: str) -> set[str]:
    length = len(text)
    return {text[start:stop] for start in range(length) for stop in range(start + 1, length + 1)}

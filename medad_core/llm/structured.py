"""Answers held to the grammar, for Transformers: what vLLM's structured outputs do.

One decision: spelling decides what may follow, not one tokenization. Any token that continues some sentence is allowed,
and after a whole sentence only the LLM's end token. Greedy choice among those is then the same as vLLM's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from torch import Tensor

from medad_core.llm.prompt import Prompt


class AllowedTokens:
    """Which tokens may follow: a `prefix_allowed_tokens_fn` of Transformers."""

    def __init__(self, prompt: Prompt, sentences: Sequence[str] = ()) -> None:
        """`sentences` are what may be answered, the template's if none are given."""
        self.sentences = prompt.spelled(sentences)
        self.end = prompt.tokenizer.eos_token_id
        self.spelling = _spelling(prompt, self.sentences)
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
    usual = (token for token in sorted(prompt.tokenizer.get_vocab().values()) if token not in special)
    texts = {token: prompt.token_text(token) for token in usual}
    return {token: text for token, text in texts.items() if text in parts}


def _substrings(text: str) -> set[str]:
    length = len(text)
    return {text[start:stop] for start in range(length) for stop in range(start + 1, length + 1)}

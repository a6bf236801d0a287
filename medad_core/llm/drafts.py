"""What an answer probably goes on with: the next tokens of the sentences that it has begun.

One decision: a draft is only a guess. The LLM reads all of it at once, and what it would not have said itself is
dropped; so answers are those of one token after another, in fewer steps (where two tokens are as likely but for the
order in which numbers are added, another one may win, as with another batch size). Source: speculative decoding,
Leviathan et al. 2023, with the sentences that the LLM was taught in place of a smaller model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING

from torch import Tensor

from medad_core.llm.prompt import Prompt

if TYPE_CHECKING:
    from transformers import Cache


class Drafts:
    """Drafts for one LLM from whole sentences, the template's if none are given."""

    def __init__(self, prompt: Prompt, sentences: Sequence[str] = ()) -> None:
        ends = set(prompt.end_tokens)
        spelled = [prompt.answer_tokens(sentence) for sentence in sentences or prompt.template.sentences]
        self._sentences = [tuple(token for token in tokens if token not in ends) for tokens in spelled]
        self.after = lru_cache(maxsize=None)(self._after)

    def _after(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """What all sentences that begin with these tokens have next; none where no sentence does."""
        begun = [tokens_of[len(tokens) :] for tokens_of in self._sentences if tokens_of[: len(tokens)] == tokens]
        same = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*begun, strict=False))
        return tuple(tokens[0] for tokens in same)


def can_be_cut(cache: Cache) -> bool:
    """Whether what a draft added to a cache can be removed again: not from a window that slides, or a state."""
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in cache.layers)


def rows_of(cache: Cache, rows: Tensor, length: int) -> Cache:
    """A cache of some rows (n,) and of the first `length` positions; the given one stays as it is."""
    taken = copy.copy(cache)
    taken.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in taken.layers:
        layer.keys = layer.keys[rows, :, :length]
        layer.values = layer.values[rows, :, :length]
    return taken

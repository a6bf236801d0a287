"""Answers held to the grammar, for Transformers: what vLLM's structured outputs do.

One decision: what may follow is decided by spelling, not by one tokenization: any token that goes on with some sentence is allowed, and
after a whole sentence only the LLM's end. Greedy choice among those is then the same as vLLM's.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from medad_core.llm.prompt import Prompt


class Choice:
    """Which tokens may follow what was said."""

    def __init__(self, prompt: Prompt) -> None:
        self.sentences, self.end = prompt.spelled_sentences(), prompt.tokenizer.eos_token_id
        special = set(prompt.tokenizer.all_special_ids)
        parts = {
            sentence[start:stop]
            for sentence in self.sentences
            for start in range(len(sentence))
            for stop in range(start + 1, len(sentence) + 1)
        }
        self.spelling = {
            token: text
            for token in range(len(prompt.tokenizer))
            if token not in special and (text := prompt.token_text(token)) in parts
        }
        self.allowed = lru_cache(maxsize=None)(self._allowed)

    def _allowed(self, said: str) -> tuple[int, ...]:
        """Tokens that may follow `said`."""
        if said in self.sentences:
            return (self.end,)
        left = {sentence[len(said) :] for sentence in self.sentences if sentence.startswith(said)}
        return tuple(token for token, text in self.spelling.items() if any(rest.startswith(text) for rest in left))

    def bias(self, tokens: list[list[int]], logits: Tensor) -> Tensor:
        """0 for tokens that may follow each row of `tokens`, −∞ for all others, shaped like `logits` (n, vocabulary)."""
        bias = torch.full_like(logits, float("-inf"))
        for row, said in enumerate(tokens):
            # A row that has ended keeps on ending, while others still speak.
            text = self.sentences[0] if self.end in said else "".join(self.spelling[token] for token in said)
            bias[row, list(self.allowed(text))] = 0
        return bias

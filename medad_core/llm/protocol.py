"""What every engine is: `Engine`, prompt embeddings in, greedy answers out as `Generation`.

One decision: every engine gets the same finished prompt embeddings. So vLLM and Transformers give the same greedy
answers in float32; 16 bits round otherwise in each engine, and may tip a close choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Generation:
    """One answer.

    `p_yes` is P("Yes") / (P("Yes") + P("No")) of the first token, of no meaning where neither begins an answer.
    `finish_reason` is "stop" where the answer ended, "length" where it was cut off. `tokens` counts the generated
    tokens, the end token included; of an answer that is held to sentences, those after which only one was left.
    """

    text: str
    p_yes: float
    finish_reason: str
    tokens: int


def share_of_yes(yes: float, no: float) -> float:
    """`p_yes` from the log-probabilities of the two first tokens."""
    odds = yes - no
    return 1 / (1 + math.exp(-odds)) if odds > 0 else math.exp(odds) / (1 + math.exp(odds))


class Engine(Protocol):
    """A frozen LLM that answers prompt embeddings."""

    name: str

    @property
    def made_with(self) -> dict[str, str]:
        """What answers, for the records of parts: `engine`, `version`, and `max_num_seqs`, the prompts at once."""

    def generate(self, prompts: np.ndarray, sentences: Sequence[str] = ()) -> list[Generation]:
        """Prompt embeddings (n, L, width) float32 to n answers, in order.

        `sentences` are the answers that structured generation is held to; without them, those of the template.
        """

    def close(self) -> None:
        """Free the model. The engine cannot be used again."""

"""How far p(yes) moves with the load of an engine, and which verdicts that may flip.

One decision: a constant by the type that the LLM computes in, the same for all engines. How many prompts share a step
changes the order in which numbers are added (vLLM #51187 and #48271 report what comes of it). `tests/measure_load.py`
measures it; medad_core/README.md has its table, and what the constants of 16 bits follow from.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# At least twice the largest difference known, so that it also holds where a temperature below one spreads p(yes).
MOVES = {"float32": 1e-3, "float16": 0.01, "bfloat16": 0.06}


def moves(answered: Mapping[str, str]) -> float:
    """How far p(yes) may move with the load, from the fingerprint of answers."""
    return MOVES[answered.get("llm_dtype", "float32")]


def is_unstable(p_yes: np.ndarray, within: float) -> np.ndarray:
    """Where a verdict could flip under another load, bool (n,): p(yes) is as near to one half as it may move."""
    return np.abs(p_yes - 0.5) <= within

"""`Engine`: prompt embeddings in, greedy answers out; and which engine runs where.

One decision: every engine gets the same finished prompt embeddings, so vLLM and Transformers give the same greedy answers.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from medad_core.config import ModelSettings
from medad_core.errors import UsageError
from medad_core.llm.prompt import Prompt
from medad_core.models.resolve import LOCAL, model_folder, weights_sha256


@dataclass(frozen=True)
class Generation:
    """One answer. `p_yes` is P("Yes") / (P("Yes") + P("No")) of the first token; `tokens` counts generated tokens, end included."""

    text: str
    p_yes: float
    finish_reason: str
    tokens: int


class Engine(Protocol):
    """A frozen LLM that answers prompt embeddings."""

    name: str

    def generate(self, prompts: np.ndarray) -> list[Generation]:
        """Prompt embeddings (n, L, width) float32 to n answers, in order."""

    def close(self) -> None:
        """Free the model. The engine cannot be used again."""


def llm_folder(name: str, *, where: ModelSettings = LOCAL) -> Path:
    """The folder of an LLM: packaged, preset, or the local `transformers` folder that is named."""
    return model_folder(name, "language model", where).folder


def llm_fingerprint(name: str, *, where: ModelSettings = LOCAL) -> dict[str, str]:
    """Name and hash of what determines an LLM's answers, whichever engine runs it. Raises UsageError or WeightsError where there is none."""
    found = model_folder(name, "language model", where)
    return {"llm": found.label, "llm_sha256": weights_sha256(found.folder)}


def choose_engine(requested: str) -> str:
    """`auto` is vLLM where it can be imported, else Transformers. Does not import vLLM (30 s)."""
    if requested == "auto":
        return "vllm" if importlib.util.find_spec("vllm") else "transformers"
    if requested == "vllm" and not importlib.util.find_spec("vllm"):
        raise UsageError("llm.engine: vllm is not installed; install medad[vllm] or set llm.engine=transformers")
    return requested


def open_engine(requested: str, prompt: Prompt, *, max_new_tokens: int, batch_size: int) -> Engine:
    """Start an engine on the LLM that `prompt` belongs to. One vLLM engine a process; close it when done."""
    if choose_engine(requested) == "vllm":
        from medad_core.llm.vllm_engine import VLLMEngine

        return VLLMEngine(prompt, max_new_tokens=max_new_tokens, batch_size=batch_size)
    from medad_core.llm.transformers_engine import TransformersEngine

    return TransformersEngine(prompt, max_new_tokens=max_new_tokens, batch_size=batch_size)

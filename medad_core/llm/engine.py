"""`Engine`: prompt embeddings in, greedy answers out; and which engine runs where.

One decision: every engine gets the same finished prompt embeddings, so vLLM and Transformers give the same greedy answers.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from medad_core.errors import UsageError
from medad_core.llm.lora import lora_sha256, merged
from medad_core.llm.prompt import Prompt
from medad_core.models.cache import sha256_of
from medad_core.models.pack import PACK, packaged


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


def llm_folder(name: str, lora: str | None = None) -> Path:
    """The folder of a packaged LLM, or the local `transformers` folder that is named, with `lora` merged into it where one is named."""
    if lora is not None:
        return merged(llm_folder(name), Path(lora))
    if name in PACK:
        return packaged(name).folder
    folder = Path(name)
    if not (folder / "config.json").is_file():
        raise UsageError(f"llm.model: {name!r} is neither packaged (smollm2-135m) nor a local transformers folder")
    return folder


def llm_fingerprint(name: str, lora: str | None = None) -> dict[str, str]:
    """Name and hash of what determines an LLM's answers, whichever engine runs it; merges nothing."""
    folder = llm_folder(name)
    digest = " ".join(sha256_of(file) for file in sorted(folder.glob("*.safetensors")))
    return {"llm": name if name in PACK else folder.name, "llm_sha256": digest if lora is None else f"{digest} with LoRA {lora_sha256(Path(lora))}"}


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

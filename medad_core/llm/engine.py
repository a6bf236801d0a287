"""`Engine`: prompt embeddings in, greedy answers out; and which engine runs where.

One decision: every engine gets the same finished prompt embeddings, so vLLM and Transformers give the same greedy answers (in float32;
16 bits round otherwise in each, and may tip a close choice).
"""

from __future__ import annotations

import gc
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from medad_core.config import LLMSettings, ModelSettings
from medad_core.errors import UsageError
from medad_core.llm.lora import lora_sha256, merged
from medad_core.llm.prompt import Prompt
from medad_core.llm.sizing import resolved_dtype
from medad_core.models.resolve import LOCAL, model_folder, model_sha256


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


def llm_folder(name: str, lora: str | None = None, *, where: ModelSettings = LOCAL) -> Path:
    """The folder of an LLM: packaged, preset, or the local `transformers` folder that is named, with `lora` merged into it where one is named."""
    folder = model_folder(name, "language model", where).folder
    return folder if lora is None else merged(folder, Path(lora).expanduser())


def llm_fingerprint(name: str, lora: str | None = None, *, where: ModelSettings = LOCAL) -> dict[str, str]:
    """Name and hash of what determines an LLM's answers, whichever engine runs it; merges nothing. Raises UsageError or WeightsError where there is none."""
    found = model_folder(name, "language model", where)
    adapted = "" if lora is None else f" with LoRA {lora_sha256(Path(lora).expanduser())}"
    return {"llm": found.label, "llm_sha256": model_sha256(found) + adapted}


def choose_engine(requested: str) -> str:
    """`auto` is vLLM where it can be imported, else Transformers. Does not import vLLM (30 s)."""
    if requested == "auto":
        return "vllm" if importlib.util.find_spec("vllm") else "transformers"
    if requested == "vllm" and not importlib.util.find_spec("vllm"):
        raise UsageError("llm.engine: vllm is not installed; install medad[vllm] or set llm.engine=transformers")
    return requested


def check_engine(settings: LLMSettings) -> None:
    """Raise UsageError where the engine of the settings, or the GPUs that it asks for, are not there."""
    name, wanted, here = choose_engine(settings.engine), settings.tensor_parallel_size, torch.cuda.device_count()
    if wanted > 1 and name != "vllm":
        raise UsageError(
            f"llm.tensor_parallel_size: engine {name} puts a model on one GPU; set it to 1, or llm.engine=vllm"
        )
    if (wanted > 1 or here) and wanted * settings.data_parallel_size > here:
        raise UsageError(
            f"llm.tensor_parallel_size × llm.data_parallel_size: {wanted} × {settings.data_parallel_size} GPUs are asked for, {here} are here"
        )


def open_engine(prompt: Prompt, settings: LLMSettings, positions: int, device: str = "cpu") -> Engine:
    """Start the engine of the settings on the LLM that `prompt` belongs to, for prompts of `positions` tokens; close it when done.

    What other models left behind is freed first: an encoder that nobody uses keeps its GPU memory until then. `device` is where
    Transformers computes; vLLM takes the GPUs that it sees.
    """
    free_memory()
    check_engine(settings)
    if settings.data_parallel_size > 1:
        from medad_core.llm.parallel import ParallelEngine

        return ParallelEngine(prompt, settings, positions, device)
    if choose_engine(settings.engine) == "vllm":
        from medad_core.llm.vllm_engine import VLLMEngine

        return VLLMEngine(prompt, settings, positions)
    from medad_core.llm.transformers_engine import TransformersEngine, load_llm

    dtype = getattr(torch, resolved_dtype(prompt.folder, settings.dtype))
    options = {
        "max_new_tokens": settings.max_new_tokens,
        "batch_size": settings.batch_size,
        "structured": settings.structured,
    }
    return TransformersEngine(prompt, **options, model=load_llm(prompt.folder, dtype).to(device))


def free_memory() -> None:
    """Give back what models that are out of use still hold: hooks make an encoder a cycle, which only the collector frees."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()

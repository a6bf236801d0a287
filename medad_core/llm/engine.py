"""Which LLM a run uses, and which engine runs it where.

One decision: the engines know only `protocol`; this module alone knows all of them. An engine's module is imported when
the engine is opened, because `transformers` and vLLM take long to import.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from medad_core.config import LLMSettings, ModelSettings
from medad_core.errors import UsageError
from medad_core.llm.lora import lora_sha256, merged
from medad_core.llm.prompt import Prompt
from medad_core.llm.protocol import Engine
from medad_core.llm.sizing import resolved_dtype
from medad_core.models.loading import check_layers
from medad_core.models.memory import free_memory
from medad_core.models.resolve import LOCAL, model_folder, model_sha256

SERVED = "vllm-server"


def llm_folder(name: str, lora: str | None = None, *, where: ModelSettings = LOCAL) -> Path:
    """The folder of an LLM: packaged, preset, or the local `transformers` folder that is named.

    Where `lora` names an adapter, the folder is that of the LLM with the adapter merged into it. Raises UsageError or
    WeightsError where there is no such LLM or adapter.
    """
    folder = model_folder(name, "language model", where).folder
    return folder if lora is None else merged(folder, Path(lora).expanduser())


def llm_fingerprint(name: str, lora: str | None = None, *, where: ModelSettings = LOCAL) -> dict[str, str]:
    """Name and hash of what determines an LLM's answers, whichever engine runs it; nothing is merged.

    Raises UsageError or WeightsError where there is no such LLM or adapter.
    """
    model = model_folder(name, "language model", where)
    adapted = "" if lora is None else f" with LoRA {lora_sha256(Path(lora).expanduser())}"
    return {"llm": model.label, "llm_sha256": model_sha256(model) + adapted}


def choose_engine(requested: str) -> str:
    """The name of the engine: `auto` is vLLM where it is installed, else Transformers.

    Does not import vLLM, which takes a quarter of a minute.

    Raises UsageError where vLLM is requested and not installed.
    """
    installed = importlib.util.find_spec("vllm") is not None
    if requested == "auto":
        return "vllm" if installed else "transformers"
    if requested == "vllm" and not installed:
        raise UsageError("llm.engine: vllm is not installed; install medad[vllm] or set llm.engine=transformers")
    return requested


def check_engine(settings: LLMSettings, gpus: int | None = None) -> None:
    """Raise UsageError where the engine is not installed, or where the settings ask for more GPUs than there are.

    `gpus` is their number, where it is not that of this machine.
    """
    name = choose_engine(settings.engine)
    each = settings.tensor_parallel_size
    copies = settings.data_parallel_size
    if name == SERVED:
        if each * copies > 1:
            raise UsageError(
                "llm.tensor_parallel_size, llm.data_parallel_size: how a served model is spread is said to its server; "
                "set both to 1, and name several servers in llm.endpoints"
            )
        return
    present = torch.cuda.device_count() if gpus is None else gpus
    if each > 1 and name != "vllm":
        raise UsageError(
            f"llm.tensor_parallel_size: engine {name} puts a model on one GPU; set it to 1, or llm.engine=vllm"
        )
    if (each > 1 or present) and each * copies > present:
        raise UsageError(
            "llm.tensor_parallel_size × llm.data_parallel_size: "
            f"{each} × {copies} GPUs are asked for, {present} are here"
        )


def import_engine(settings: LLMSettings) -> None:
    """Import what `open_engine` imports last and longest, vLLM, where the settings choose it. Opens nothing."""
    if settings.engine != SERVED and settings.data_parallel_size == 1 and choose_engine(settings.engine) == "vllm":
        from medad_core.llm.vllm_engine import import_vllm

        import_vllm()


def open_engine(prompt: Prompt, settings: LLMSettings, positions: int, device: str = "cpu") -> Engine:
    """Start the engine of the settings on the LLM of `prompt`, for prompts of `positions` tokens.

    The caller closes it. `device` is where Transformers computes; vLLM takes the GPUs that it sees. Unused models are
    freed first: an encoder that nobody uses keeps its GPU memory until then. Raises as `check_engine` does.
    """
    free_memory()
    check_engine(settings)
    check_layers(prompt.folder)
    if settings.engine == SERVED:
        from medad_core.llm.served import ServedEngine

        return ServedEngine(prompt, settings, positions)
    if settings.data_parallel_size > 1:
        from medad_core.llm.parallel import ParallelEngine

        return ParallelEngine(prompt, settings, positions, device, open_engine)
    if choose_engine(settings.engine) == "vllm":
        from medad_core.llm.vllm_engine import VLLMEngine

        return VLLMEngine(prompt, settings, positions)
    from medad_core.llm.transformers_engine import TransformersEngine, load_llm

    dtype = getattr(torch, resolved_dtype(prompt.folder, settings.dtype))
    return TransformersEngine(
        prompt,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        structured=settings.structured,
        model=load_llm(prompt.folder, dtype).to(device),
    )

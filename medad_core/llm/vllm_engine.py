"""Greedy generation with vLLM in this process, on CUDA or on the CPU build.

One decision: vLLM runs in-process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`), one engine a process. Importing it takes about 30 s,
so this module is imported only when an engine is opened.
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch

from medad_core.config import LLMSettings
from medad_core.llm.engine import Generation
from medad_core.llm.prompt import Prompt
from medad_core.llm.sizing import gpu_share, model_size, resolved_dtype

# The CPU backend shares prefixes in blocks whose size must be a multiple of 32: the smallest wastes least.
CPU_BLOCK_SIZE = 32
CPU_CACHE_GIB = "2"
CPU_SEQUENCES = 64


class VLLMEngine:
    """See `Engine`."""

    name = "vllm"

    def __init__(self, prompt: Prompt, settings: LLMSettings, positions: int) -> None:
        on_cpu = not torch.cuda.is_available()
        _quiet_environment(on_cpu)
        from vllm import LLM

        self.prompt, self.sampling = prompt, sampling(prompt, settings)
        size, dtype = model_size(prompt.folder), resolved_dtype(prompt.folder, settings.dtype)
        length = positions + settings.max_new_tokens
        sequences = settings.max_sequences or (CPU_SEQUENCES if on_cpu else size.sequences)
        self.dtype = getattr(torch, dtype)
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
            # Compiling takes minutes on a small machine, more than it saves a cohort of a few thousand slices.
            **(
                {"block_size": CPU_BLOCK_SIZE, "enforce_eager": True}
                if on_cpu
                else _gpu(settings, size.bytes_needed(dtype, sequences, length))
            ),
        )

    def generate(self, prompts: np.ndarray) -> list[Generation]:
        """See `Engine.generate`."""
        inputs = [{"prompt_embeds": torch.from_numpy(prompt).to(self.dtype)} for prompt in prompts]
        outputs = self.llm.generate(inputs, self.sampling, use_tqdm=False)
        return [self._generation(output.outputs[0]) for output in outputs]

    def _generation(self, output) -> Generation:
        first = output.logprobs[0]
        odds = first[self.prompt.yes_token].logprob - first[self.prompt.no_token].logprob
        text, ended, count = self.prompt.read_answer(list(output.token_ids))
        return Generation(text, 1 / (1 + math.exp(-odds)), "stop" if ended else "length", count)

    def close(self) -> None:
        """See `Engine.close`."""
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm


def sampling(prompt: Prompt, settings: LLMSettings):
    """vLLM's parameters of a greedy answer, held to the template's sentences where the settings say so."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    return SamplingParams(
        temperature=0.0,
        max_tokens=settings.max_new_tokens,
        logprob_token_ids=[prompt.yes_token, prompt.no_token],
        detokenize=False,
        stop_token_ids=list(prompt.end_tokens),
        structured_outputs=StructuredOutputsParams(choice=prompt.spelled_sentences()) if settings.structured else None,
    )


def _gpu(settings: LLMSettings, needed: int) -> dict[str, float]:
    """The share of each GPU that vLLM may fill: the one asked for, or what model and cache need."""
    total = torch.cuda.get_device_properties(0).total_memory
    return {
        "gpu_memory_utilization": settings.gpu_memory_share or gpu_share(needed, total, settings.tensor_parallel_size)
    }


def _quiet_environment(on_cpu: bool) -> None:
    """What vLLM reads from the environment at import, unless the user has set it."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if on_cpu:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB)
        # By default vLLM leaves a core to a scheduler process; in-process there is none, and of two cores one would idle.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

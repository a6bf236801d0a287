"""Several copies of the LLM, each in a process and on GPUs of its own.

One decision: vLLM refuses data parallelism within one process, and copies need nothing of each other, so a copy is a whole engine in a
spawned process and prompts are dealt in equal runs. A process sees only its GPUs, from before CUDA starts there.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import numpy as np

from medad_core import stopping
from medad_core.config import LLMSettings
from medad_core.errors import EngineError
from medad_core.llm.engine import Engine, Generation, open_engine
from medad_core.llm.prompt import Prompt

log = logging.getLogger(__name__)
_engine: Engine | None = None  # of a child process


class ParallelEngine:
    """See `Engine`. `data_parallel_size` engines of the settings; an engine that cannot start raises at the first prompts."""

    name = "parallel"

    def __init__(self, prompt: Prompt, settings: LLMSettings, positions: int, device: str) -> None:
        self.copies = settings.data_parallel_size
        context = get_context("spawn")  # a fork would inherit a CUDA that is already started
        shares = context.Queue()
        for share in gpu_shares(self.copies, settings.tensor_parallel_size):
            shares.put(share)
        single = settings.model_copy(update={"data_parallel_size": 1})
        words = (prompt.folder, prompt.template.name, prompt.image)
        self.pool = ProcessPoolExecutor(
            self.copies, context, _start, (shares, words, single, positions, device.split(":")[0], self.copies)
        )

    def generate(self, prompts: np.ndarray) -> list[Generation]:
        """See `Engine.generate`."""
        runs = [run for run in np.array_split(prompts, self.copies) if len(run)]
        try:
            return [answer for answers in self.pool.map(_generate, runs) for answer in answers]
        except BrokenProcessPool as error:
            raise EngineError(
                "llm.data_parallel_size: a process of the LLM ended by itself; its own message is above (often GPU memory that was full)"
            ) from error

    def close(self) -> None:
        """See `Engine.close`."""
        self.pool.shutdown()


def gpu_shares(copies: int, each: int) -> list[str]:
    """For every copy its value of CUDA_VISIBLE_DEVICES, out of those that are visible here; empty where there is no GPU."""
    import torch

    visible = (
        os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        if os.environ.get("CUDA_VISIBLE_DEVICES")
        else [str(number) for number in range(torch.cuda.device_count())]
    )
    return [",".join(visible[copy * each : (copy + 1) * each]) for copy in range(copies)]


def _start(shares, words: tuple, settings: LLMSettings, positions: int, device: str, copies: int) -> None:
    """Open this process's engine."""
    global _engine
    stopping.end_with_parent()
    share = shares.get()
    if share:
        os.environ["CUDA_VISIBLE_DEVICES"] = share
    import torch

    if not share:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // copies))
    _engine = open_engine(Prompt(*words), settings, positions, device)
    log.info("engine on %s", share or "CPU")


def _generate(prompts: np.ndarray) -> list[Generation]:
    return _engine.generate(prompts)

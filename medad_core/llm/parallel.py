"""Several copies of the LLM, each in a process and on GPUs of its own.

One decision: vLLM refuses data parallelism within one process, and copies need nothing of each other. So a copy is a
whole engine in a spawned process, and prompts are dealt in equal runs. A process sees only its GPUs, from before CUDA
starts there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import Queue
from pathlib import Path

import numpy as np
import torch

from medad_core import stopping
from medad_core.config import LLMSettings
from medad_core.errors import EngineError
from medad_core.llm.prompt import Prompt
from medad_core.llm.protocol import Engine, Generation
from medad_core.surroundings.processes import spawn_context

log = logging.getLogger(__name__)
OpenEngine = Callable[[Prompt, LLMSettings, int, str], Engine]
_opened: list[Engine] = []  # the one engine of a child process


@dataclass(frozen=True)
class _Copy:
    """All that a process needs to open its engine; pickled to get there."""

    open_engine: OpenEngine
    folder: Path
    template: str
    image: bool
    settings: LLMSettings
    positions: int
    device: str
    copies: int


class ParallelEngine:
    """See `Engine`.

    `data_parallel_size` engines of the settings; an engine that cannot start raises at the first prompts.
    """

    name = "parallel"

    def __init__(
        self, prompt: Prompt, settings: LLMSettings, positions: int, device: str, open_engine: OpenEngine
    ) -> None:
        """`open_engine` opens one engine; it must be a function of a module, so that it can be pickled."""
        self.copies = settings.data_parallel_size
        context = spawn_context()  # a fork would inherit a CUDA that is already started
        shares = context.Queue()
        for share in gpu_shares(self.copies, settings.tensor_parallel_size):
            shares.put(share)
        copy = _Copy(
            open_engine,
            prompt.folder,
            prompt.template.name,
            prompt.image,
            settings.model_copy(update={"data_parallel_size": 1}),
            positions,
            device.split(":", maxsplit=1)[0],
            self.copies,
        )
        self.pool = ProcessPoolExecutor(self.copies, context, _start, (shares, copy))

    @property
    def made_with(self) -> dict[str, str]:
        """See `Engine.made_with`. The engine is that of a copy."""
        return {**self.pool.submit(_made_with).result(), "copies": str(self.copies)}

    def generate(self, prompts: np.ndarray, sentences: Sequence[str] = ()) -> list[Generation]:
        """See `Engine.generate`. Raises EngineError where a process ends by itself."""
        runs = [run for run in np.array_split(prompts, self.copies) if len(run)]
        try:
            return [
                answer
                for answers in self.pool.map(partial(_generate, sentences=tuple(sentences)), runs)
                for answer in answers
            ]
        except BrokenProcessPool as error:
            raise EngineError(
                "llm.data_parallel_size: a process of the LLM ended by itself; "
                "its own message is above (often GPU memory that was full)"
            ) from error

    def close(self) -> None:
        """See `Engine.close`."""
        self.pool.shutdown()


def gpu_shares(copies: int, each: int) -> list[str]:
    """The value of CUDA_VISIBLE_DEVICES for every copy, `each` of the GPUs visible here; empty where there is none."""
    if chosen := os.environ.get("CUDA_VISIBLE_DEVICES"):
        visible = chosen.split(",")
    else:
        visible = [str(number) for number in range(torch.cuda.device_count())]
    return [",".join(visible[copy * each : (copy + 1) * each]) for copy in range(copies)]


def _start(shares: Queue, copy: _Copy) -> None:
    """Open this process's engine."""
    stopping.end_with_parent()
    share = shares.get()
    if share:
        os.environ["CUDA_VISIBLE_DEVICES"] = share
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // copy.copies))
    prompt = Prompt(copy.folder, copy.template, copy.image)
    _opened.append(copy.open_engine(prompt, copy.settings, copy.positions, copy.device))
    log.info("engine on %s", share or "CPU")


def _generate(prompts: np.ndarray, sentences: Sequence[str]) -> list[Generation]:
    return _opened[0].generate(prompts, sentences)


def _made_with() -> dict[str, str]:
    return _opened[0].made_with

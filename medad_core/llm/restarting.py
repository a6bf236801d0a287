"""An engine that is started again after its first breakdown.

One decision: one restart and no second. The first breakdown may have been chance (a full GPU, a killed process); a
second was not. The engine's errors go into a log file of their own: vLLM logs much, and a run shows one line.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from medad_core import stopping
from medad_core.errors import EngineError, EngineStartError, MedadError, in_one_line
from medad_core.llm.protocol import Engine, Generation
from medad_core.models.memory import free_memory
from medad_core.store.files import local_path

log = logging.getLogger(__name__)
CAPTURED_LOGGERS = ("vllm", __name__)  # their errors go into the engine's log file


class RestartingEngine:
    """See `Engine`. `start` opens an engine; `log_file` is where its errors are written, which messages name."""

    name = "restarting"

    def __init__(self, start: Callable[[], Engine], log_file: Path) -> None:
        self.start = start
        self.log_file = log_file
        self.restarted = False
        self.engine: Engine | None = self._open()

    @property
    def made_with(self) -> dict[str, str]:
        """See `Engine.made_with`."""
        return {} if self.engine is None else self.engine.made_with

    def generate(self, prompts: np.ndarray, sentences: Sequence[str] = ()) -> list[Generation]:
        """See `Engine.generate`.

        Raises EngineError where the engine breaks down for the second time, EngineStartError where it cannot be opened
        again.
        """
        try:
            return self.engine.generate(prompts, sentences)
        except Exception as error:
            if isinstance(error, MedadError) and not isinstance(error, EngineError):
                raise
            # A stop ends the engine's processes before this one; a new engine would outlive them.
            stopping.check()
            self._note("the engine broke down while it answered", error)
            if self.restarted:
                raise EngineError(
                    f"the LLM's engine broke down again after it was started anew ({in_one_line(error)}); "
                    f"its log is {self.log_file}"
                ) from error
        log.warning("the LLM's engine broke down and is started anew; its log is %s", self.log_file)
        self.restarted = True
        self.close()
        self.engine = self._open()
        return self.generate(prompts, sentences)

    def close(self) -> None:
        """See `Engine.close`."""
        engine = self.engine
        self.engine = None
        try:
            if engine is not None:
                engine.close()
        except Exception as error:
            self._note("the engine could not be closed", error)  # an engine that broke down may not close
        del engine
        free_memory()

    def _open(self) -> Engine:
        try:
            return self.start()
        except MedadError:
            raise
        except Exception as error:
            self._note("the engine could not be started", error)
            raise EngineStartError(
                f"the LLM's engine could not be started ({in_one_line(error)}); its log is {self.log_file}"
            ) from error

    def _note(self, event: str, error: Exception) -> None:
        log.error(event, exc_info=error)


@contextmanager
def captured_engine_log(folder: str) -> Iterator[Path]:
    """While the block runs, errors of engines are written to `engine.log` in `folder`, whose path is given.

    The file lies in the temporary folder where `folder` is not local. It appears with the first error.
    """
    log_file = (local_path(folder) or Path(tempfile.gettempdir())) / "engine.log"
    handler = logging.FileHandler(log_file, delay=True, encoding="utf-8")
    handler.setLevel(logging.ERROR)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in CAPTURED_LOGGERS]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield log_file
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()

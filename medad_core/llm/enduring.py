"""An engine that outlives one breakdown of itself.

One decision: an engine is opened anew once, because what broke it down may have been chance (a GPU that was full, a process that was
killed), and no second time, because then it was not. What it said goes into a file of its own: vLLM says much, and a run shows one line.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from medad_core import stopping
from medad_core.errors import EngineError, EngineStartError, MedadError
from medad_core.llm.engine import Engine, Generation, free_memory
from medad_core.store.files import local_path

log = logging.getLogger(__name__)
SPEAKERS = ("vllm", __name__)  # loggers whose errors go into the file


class EnduringEngine:
    """See `Engine`. `start` opens an engine; `said` is the file for its errors."""

    name = "enduring"

    def __init__(self, start: Callable[[], Engine], said: Path) -> None:
        self.start, self.said, self.restarted = start, said, False
        self.engine: Engine | None = self._opened()

    def generate(self, prompts: np.ndarray) -> list[Generation]:
        """See `Engine.generate`. Raises EngineError where the engine breaks down for the second time, EngineStartError where it cannot be opened again."""
        try:
            return self.engine.generate(prompts)
        except Exception as error:
            if isinstance(error, MedadError) and not isinstance(error, EngineError):
                raise
            stopping.check()  # its processes end before this one where all are told to; a new engine would outlive them
            self._note("the engine broke down while it answered", error)
            if self.restarted:
                raise EngineError(
                    f"the LLM's engine broke down again after it was started anew ({_words(error)}); its log is {self.said}"
                ) from error
        log.warning("the LLM's engine broke down and is started anew; its log is %s", self.said)
        self.restarted = True
        self.close()
        self.engine = self._opened()
        return self.generate(prompts)

    def close(self) -> None:
        """See `Engine.close`."""
        engine, self.engine = self.engine, None
        try:
            if engine is not None:
                engine.close()
        except Exception as error:
            self._note("the engine could not be closed", error)  # one that is dead may not close
        del engine
        free_memory()

    def _opened(self) -> Engine:
        try:
            return self.start()
        except MedadError:
            raise
        except Exception as error:
            self._note("the engine could not be started", error)
            raise EngineStartError(
                f"the LLM's engine could not be started ({_words(error)}); its log is {self.said}"
            ) from error

    def _note(self, what: str, error: Exception) -> None:
        log.error(what, exc_info=error)


@contextmanager
def heard(folder: str) -> Iterator[Path]:
    """While the block runs, errors of engines are written to `engine.log` in `folder` (in the temporary folder, for one that is not local)."""
    said = (local_path(folder) or Path(tempfile.gettempdir())) / "engine.log"
    handler = logging.FileHandler(said, delay=True, encoding="utf-8")
    handler.setLevel(logging.ERROR)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    for name in SPEAKERS:
        logging.getLogger(name).addHandler(handler)
    try:
        yield said
    finally:
        for name in SPEAKERS:
            logging.getLogger(name).removeHandler(handler)
        handler.close()


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__

"""A part that may be at fault for an error.

One decision: an error is classified in the process that raised it, because its causes are lost when it is pickled. Only
the result is sent to the other process.
"""

from __future__ import annotations

from concurrent.futures import BrokenExecutor
from typing import Any

from medad_core.errors import MedadError, PartError, in_one_line
from medad_core.faults.classify import Fault, classify


class Suspect(MedadError):
    """A part could not be made and is probably at fault; `unsure` if the machine may be at fault instead.

    The message is that of the original error; `attempts` is the number of times that the part was tried.
    """

    def __init__(self, message: str, reason: str, unsure: bool, attempts: int) -> None:
        super().__init__(message)
        self.reason = reason
        self.unsure = unsure
        self.attempts = attempts

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.reason, self.unsure, self.attempts)


def accuse(error: Exception, attempts: int) -> Exception:
    """A Suspect if the part may be at fault; the error itself if it stops the run."""
    fault = classify(error)
    if fault is Fault.RUN:
        return error
    reason = error.reason if isinstance(error, PartError) else in_one_line(error)
    return Suspect(str(error), reason, fault is Fault.UNSURE, attempts)


def suspect_of(error: BaseException) -> Suspect:
    """The Suspect of an error from a worker. Raises the error if it stops the run."""
    if isinstance(error, BrokenExecutor):
        return Suspect("a worker process died in the middle of its work", "its worker process died", True, 1)
    if not isinstance(error, Suspect):
        raise error
    return error

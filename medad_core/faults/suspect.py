"""A part that is blamed for an error.

One decision: an error is judged in the process where it was raised, because its causes do not survive the way to
another; what travels is the judgement.
"""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from typing import Any

from medad_core.errors import MedadError, PartError
from medad_core.faults.classify import Fault, classify, in_one_line


class Suspect(MedadError):
    """A part could not be made, by its own fault as far as can be told; `unsure` where it may be the machine's.

    Its message is that of the error; `attempts` counts how often the part was tried.
    """

    def __init__(self, message: str, reason: str, unsure: bool, attempts: int) -> None:
        super().__init__(message)
        self.reason = reason
        self.unsure = unsure
        self.attempts = attempts

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.reason, self.unsure, self.attempts)


def accuse(error: Exception, attempts: int) -> Exception:
    """A Suspect where the part may be at fault, the error itself where it stops the run."""
    fault = classify(error)
    if fault is Fault.RUN:
        return error
    reason = error.reason if isinstance(error, PartError) else in_one_line(error)
    return Suspect(str(error), reason, fault is Fault.UNSURE, attempts)


def suspect_of(error: BaseException) -> Suspect:
    """What is known of a part that failed in a worker; raises the error where it stops the run."""
    if isinstance(error, BrokenProcessPool):
        return Suspect("a worker process died in the middle of its work", "its worker process died", True, 1)
    if not isinstance(error, Suspect):
        raise error
    return error

"""Has all parts of one stage made, quarantines parts that fail, or stops the run.

One decision: an executor makes ranges of parts and decides nothing; the supervisor decides and makes nothing. It works
in this order:

1. If an earlier process ended while it made a part, this part is made in a separate process.
2. All other parts are made in parallel, in ranges.
3. If a range failed, its first part that is not done is the suspect. It is tried alone, and given up if it fails
   again. The rest of the range is tried again. The first time that only worker processes died, all unfinished parts
   are tried again.
4. If many parts are given up one after another, the machine may be at fault. To test it, a part that succeeded before
   is made again. If this part fails, or if no part succeeded before, the run stops.
5. At the end, the parts that were given up are quarantined.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from typing import Protocol

from medad_core.faults.quarantine import quarantine
from medad_core.faults.suspect import Suspect, suspect_of
from medad_core.faults.trial import Trial
from medad_core.store import Stage

log = logging.getLogger(__name__)
Range = Sequence[int]


@dataclass(frozen=True)
class Failure:
    """A range of parts that failed, and its error."""

    numbers: Range
    error: Exception

    @property
    def is_death(self) -> bool:
        """Whether a worker process died, or the machine that it ran on."""
        return isinstance(self.error, BrokenExecutor)


OnFailure = Callable[[Failure], None]


class Executor(Protocol):
    """Makes ranges of parts of one stage."""

    @property
    def is_own_process(self) -> bool:
        """Whether parts are made in this process, so that a bad part can end it."""

    def make(self, ranges: Sequence[Range], on_failure: OnFailure) -> list[Failure]:
        """Make the ranges in parallel; returns those that failed after all retries.

        `on_failure` is called as soon as a range has failed. If it raises, ranges that have not begun are not made.
        """

    def make_alone(self, number: int) -> Failure | None:
        """Make one part once, with no other in parallel; returns None if it was made."""

    def make_apart(self, number: int) -> Failure | None:
        """Make one part in a new process; returns None if it was made."""


class Supervisor:
    """Has `executor` make parts of `stage`. A suspect part is tried alone `tries_alone` times."""

    def __init__(self, stage: Stage, executor: Executor, tries_alone: int = 1, machine_is_well: bool = False) -> None:
        self.stage = stage
        self.executor = executor
        self.tries_alone = max(1, tries_alone)
        self.trial = Trial(machine_is_well)

    def make(self, ranges: Sequence[Range]) -> None:
        """Make every part of `ranges`, or quarantine it. Raises the error that stops the run."""
        ranges = self._make_dangerous_apart(ranges)
        deaths = 0
        while ranges:
            failures = self.executor.make(ranges, _raise_what_stops_the_run)
            if not failures:
                break
            self.stage.sweep()  # after workers that died
            deaths += any(failure.is_death for failure in failures)
            undone = self._undone(failures)
            if deaths == 1 and all(failure.is_death for failure in failures):
                log.warning("a worker process of %s died; its parts are made again in new ones", self.stage.name)
            else:
                self._try_first_parts(undone, failures, deaths)
                undone = [numbers[1:] for numbers in undone]
            ranges = [numbers for numbers in undone if numbers]
        self._quarantine()

    def _make_dangerous_apart(self, ranges: Sequence[Range]) -> list[Range]:
        """Make the parts that ended an earlier process in a separate one; returns the ranges without them."""
        if not self.executor.is_own_process:
            return list(ranges)
        begun = self.stage.begun()
        dangerous = [number for numbers in ranges for number in numbers if number in begun]
        for number in dangerous:
            log.warning(
                "a process ended in the middle of %s part %d; the part is now made in a separate process",
                self.stage.name,
                number,
            )
            failure = self.executor.make_apart(number)
            if failure is not None:
                self.stage.sweep()
                self._judge(number, suspect_of(failure.error), attempts_before=1)
        safe = ([number for number in numbers if number not in dangerous] for numbers in ranges)
        return [numbers for numbers in safe if numbers]

    def _undone(self, failures: Sequence[Failure]) -> list[Range]:
        """The unfinished parts of each failed range."""
        if not failures:
            return []
        given_up = {part.number for part in self.trial.given_up}
        left = set(self.stage.pending()) - given_up
        return [[number for number in failure.numbers if number in left] for failure in failures]

    def _try_first_parts(self, undone: Sequence[Range], failures: Sequence[Failure], deaths: int) -> None:
        """Try the first part of each range alone: this part caused the error of its range."""
        for numbers, failure in zip(undone, failures, strict=True):
            if numbers:
                attempts_before = suspect_of(failure.error).attempts + (deaths > 1)
                self._judge(numbers[0], self._alone(numbers[0]), attempts_before)

    def _alone(self, number: int) -> Suspect | None:
        """Try a part alone; returns None if it was made. Raises the error that stops the run."""
        suspect = None
        for _ in range(self.tries_alone):
            failure = self.executor.make_alone(number)
            if failure is None:
                return None
            self.stage.sweep()
            suspect = suspect_of(failure.error)
            suspect.attempts = self.tries_alone
        return suspect

    def _judge(self, number: int, suspect: Suspect | None, attempts_before: int) -> None:
        """Give a part up, unless it was made. Raises the suspect if the machine is at fault and not the part."""
        if suspect is None:
            return
        if self.trial.give_up(number, attempts_before + suspect.attempts, suspect, self._made()):
            self._prove_machine(suspect)

    def _prove_machine(self, suspect: Suspect) -> None:
        """Make a part again that succeeded before. Raises the suspect if there is none, or if it fails now."""
        good = [number for number, record in self.stage.records().items() if record.rows]
        if not good:
            raise suspect
        log.warning(
            "%s part %d is made again, to test whether the machine is at fault",
            self.stage.name,
            good[-1],
        )
        self.stage.forget(good[-1])
        if self._alone(good[-1]) is not None:
            raise suspect
        self.trial.trust()

    def _quarantine(self) -> None:
        """Quarantine the parts that were given up. Raises a suspect if the machine may be at fault and not the part."""
        made = self._made()
        if self.trial.in_doubt(made):
            self._prove_machine(self.trial.given_up[-1].suspect)
        for part in self.trial.verdict(made):
            quarantine(self.stage, part.number, part.attempts, part.suspect.reason)

    def _made(self) -> int:
        """The number of parts with rows, including parts that earlier processes made."""
        return sum(record.rows > 0 for record in self.stage.records().values())


def _raise_what_stops_the_run(failure: Failure) -> None:
    suspect_of(failure.error)

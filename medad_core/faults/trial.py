"""The parts of one stage that are given up, and whether the machine may be at fault.

One decision: a part is at fault only if other parts succeed. If the last parts all failed, the machine may be at fault
until a part that succeeded before succeeds again. If no part ever succeeded, the machine is assumed to be at fault.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from medad_core.faults.suspect import Suspect

UNSURE_IN_A_ROW = 3  # unsure suspects with no part made between them, after which the machine is tested
SURE_IN_A_ROW = 10  # the same for sure suspects
ALL_OF = 3  # sure suspects if no part was ever made: they cannot all be at fault


@dataclass(frozen=True)
class GivenUp:
    """A part that could not be made, and how often it was tried."""

    number: int
    attempts: int
    suspect: Suspect


@dataclass
class Trial:
    """Parts given up so far. `machine_is_well`: the machine has just made parts of other cases.

    `made` is the number of parts with rows: a part without cases says nothing about the machine.
    """

    machine_is_well: bool = False
    given_up: list[GivenUp] = field(default_factory=list)
    _made: int = 0
    _in_a_row: int = 0

    def give_up(self, number: int, attempts: int, suspect: Suspect, made: int) -> bool:
        """Give up a part. True if so many parts failed one after another that the machine must be tested."""
        self._in_a_row = self._in_a_row + 1 if made == self._made else 1
        self._made = made
        self.given_up.append(GivenUp(number, attempts, suspect))
        limit = UNSURE_IN_A_ROW if suspect.unsure else SURE_IN_A_ROW
        nothing_to_compare = made == 0 and self.machine_is_well
        return self._in_a_row >= limit and not nothing_to_compare

    def trust(self) -> None:
        """Reset the count: the machine was tested and is well."""
        self._in_a_row = 0

    def in_doubt(self, made: int) -> bool:
        """Whether no part was made since the last one was given up, and the machine was not tested since."""
        return made > 0 and self._in_a_row > 0 and self._made == made

    def verdict(self, made: int) -> list[GivenUp]:
        """The parts to quarantine, at the end. Raises a suspect if the machine may be at fault instead."""
        if made == 0 and not self.machine_is_well:
            for part in self.given_up:
                if part.suspect.unsure or len(self.given_up) >= ALL_OF:
                    raise part.suspect
        return list(self.given_up)

"""The parts of one stage that are given up, and what that says of the machine.

One decision: a part is to blame only where other parts go well. Where the last ones that were tried all failed, the
machine is in doubt until a part that went well before goes well again; where none ever went well, the machine is taken
to be at fault.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from medad_core.faults.suspect import Suspect

UNSURE_IN_A_ROW = 3  # unsure suspects with no part made between them, after which the machine is looked at
SURE_IN_A_ROW = 10  # … and sure ones
ALL_OF = 3  # sure suspects where no part was ever made: they cannot all be to blame


@dataclass(frozen=True)
class GivenUp:
    """A part that could not be made, and how often it was tried."""

    number: int
    attempts: int
    suspect: Suspect


@dataclass
class Trial:
    """Parts given up so far. `machine_is_well`: it was seen to work a moment ago, with other cases.

    `made` is the number of parts that have rows: a part without cases says nothing of the machine.
    """

    machine_is_well: bool = False
    given_up: list[GivenUp] = field(default_factory=list)
    _made: int = 0
    _in_a_row: int = 0

    def give_up(self, number: int, attempts: int, suspect: Suspect, made: int) -> bool:
        """Give up a part. True where so many fail one after another that the machine is to be looked at."""
        self._in_a_row = self._in_a_row + 1 if made == self._made else 1
        self._made = made
        self.given_up.append(GivenUp(number, attempts, suspect))
        limit = UNSURE_IN_A_ROW if suspect.unsure else SURE_IN_A_ROW
        nothing_to_compare = made == 0 and self.machine_is_well
        return self._in_a_row >= limit and not nothing_to_compare

    def trust(self) -> None:
        """The machine was looked at, and is well."""
        self._in_a_row = 0

    def in_doubt(self, made: int) -> bool:
        """Whether nothing was made since a part was given up, or since the machine was looked at."""
        return made > 0 and self._in_a_row > 0 and self._made == made

    def verdict(self, made: int) -> list[GivenUp]:
        """The parts to quarantine, at the end. Raises a suspect where it cannot be told from a fault of the machine."""
        if made == 0 and not self.machine_is_well:
            for part in self.given_up:
                if part.suspect.unsure or len(self.given_up) >= ALL_OF:
                    raise part.suspect
        return list(self.given_up)

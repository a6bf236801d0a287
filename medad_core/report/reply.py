"""The reply to a question in free words, as a terminal prints it.

One decision: it says which question was answered, what the language model wrote stands in quotation marks on a line of
its own, and what is computed stands apart from it. A declined question has a reason and a list of what can be asked.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from medad_core.data.location import anatomical
from medad_core.media import visible

RESEARCH = "For research. Not a medical device."
PHANTOM = "PHANTOM, drawn by a program. Not a patient."
_WIDTH = 16
_AGREEMENT = {True: "language model and map say the same", False: "LANGUAGE MODEL AND MAP DISAGREE"}


@dataclass(frozen=True)
class Computed:
    """What the map of the slice says, above `threshold`.

    `value` is the computed answer to `question`, by the name of the question. `cell`, `side`, `longest_mm` and `parts`
    are None where nothing is above the threshold; `cell` is the picture's, `side` the patient's.
    """

    question: str
    value: str
    score: float
    threshold: float
    cell: str | None
    side: str | None
    longest_mm: float | None
    parts: int | None


@dataclass(frozen=True)
class Reply:
    """A question in free words about one slice, and what came of it.

    `understood` is the learned question that it was taken for, None where it is near none; `similarity` is the cosine
    with `nearest`, the wording it is nearest to. `declined` says why it is not answered, "" where it is. `answer` and
    `value` are the language model's sentence and what it means, None where it was not asked or its sentence cannot be
    read; `p_yes` is None unless it was asked for yes or no. `can_be_asked` are the questions that these weights answer,
    `notes` is what a reader must know of them.
    """

    case_id: str
    slice_index: int
    phantom: bool
    asked: str
    understood: str | None
    nearest: str
    similarity: float
    declined: str
    can_be_asked: tuple[str, ...]
    notes: tuple[str, ...]
    computed: Computed | None = None
    answer: str | None = None
    value: str | None = None
    place: str | None = None
    p_yes: float | None = None

    @property
    def agrees(self) -> bool | None:
        """Whether the language model says what is computed, and names its place if it names one; None without both."""
        if self.value is None or self.computed is None:
            return None
        return self.value == self.computed.value and self.place in (None, self.computed.cell)

    def lines(self) -> list[str]:
        """The reply, line by line; no line has a character that cannot be seen."""
        rows = [("case", f"{self.case_id}, slice {self.slice_index}"), ("asked", self.asked)]
        rows += self._declined() if self.declined else self._answered()
        if self.computed is not None:
            rows.append(("computed", _computed(self.computed)))
        if self.agrees is not None:
            rows.append(("", _AGREEMENT[self.agrees]))
        rows += [("note", f"{PHANTOM} {RESEARCH}" if self.phantom else RESEARCH)]
        rows += [("", note) for note in self.notes]
        return [visible(f"{head:<{_WIDTH}}{text}") for head, text in rows]

    def to_json(self) -> str:
        """The reply as JSON, with all its fields."""
        return json.dumps({**asdict(self), "agrees": self.agrees}, indent=1) + "\n"

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _declined(self) -> list[tuple[str, str]]:
        listed = [("" if number else "can be asked", words) for number, words in enumerate(self.can_be_asked)]
        return [("declined", self.declined), *listed]

    def _answered(self) -> list[tuple[str, str]]:
        p_yes = "" if self.p_yes is None else f" p(yes) {self.p_yes:.3f}"
        unread = "" if self.value is not None else " (none of the sentences that it was taught, so not read)"
        return [
            ("answered", f"{self.understood} (similarity {self.similarity:.2f})"),
            ("language model", f"“{self.answer}”{unread}{p_yes}"),
        ]


def _computed(computed: Computed) -> str:
    head = (
        f"from the map, without the language model: {computed.question}: {computed.value}; score {computed.score:.3f}"
    )
    if computed.cell is None or computed.longest_mm is None:
        return f"{head}; nothing above {computed.threshold:g}"
    parts = "one part" if computed.parts == 1 else f"{computed.parts} parts"
    return (
        f"{head}; above {computed.threshold:g}: cell {computed.cell} (of the patient: {anatomical(computed.cell)}), "
        f"side {computed.side}, longest diameter {computed.longest_mm:.1f} mm, {parts}"
    )

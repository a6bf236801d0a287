"""The answers that the LLM is taught, and how an answer is parsed.

One decision: the grammar is ten whole sentences, and those that AnomalyGPT is taught. Anything else is kept as it is
and counted as unparsed, never guessed: a search for "No" would also find it in "Now". See
medad_core/README.md, "Mistakes that are not repeated".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from medad_core.data.location import CELLS

QUESTION = "This is a brain MRI image. Is there any anomaly in the image?"
NO = "No, there is no anomaly in the image."


def yes(cell: str) -> str:
    """The answer that names an anomaly in one cell."""
    return f"Yes, there is an anomaly at the {cell} of the image."


@dataclass(frozen=True)
class Answer:
    """A parsed answer: the verdict, and the cell it names (None for "no", and where it names several)."""

    verdict: str
    location: str | None


GRAMMAR: dict[str, Answer] = {NO: Answer("no", None)} | {yes(cell): Answer("yes", cell) for cell in CELLS}

# AnomalyGPT's words for one anomaly, and for several in one place or in two; "no" is the same.
ANOMALYGPT_GRAMMAR: dict[str, Answer] = {
    f"Yes, there is an anomaly in the image, at the {cell} of the image.": Answer("yes", cell) for cell in CELLS
}
_CELL = f"({'|'.join(CELLS)})"
_SEVERAL = re.compile(
    rf"Yes, there are \d+ anomalies in the image, they are at the {_CELL}(?: and {_CELL})? of the image\."
)


def answer_to(cell: str | None) -> str:
    """The right answer for a slice whose tumour lies in `cell`, or that has none."""
    return NO if cell is None else yes(cell)


def parse(text: str) -> Answer | None:
    """Read an answer; None where it is not one of the grammars' sentences (surrounding white space aside)."""
    text = text.strip()
    if several := _SEVERAL.fullmatch(text):
        return Answer("yes", several[1] if several[2] in (None, several[1]) else None)
    return GRAMMAR.get(text) or ANOMALYGPT_GRAMMAR.get(text)

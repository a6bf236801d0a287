"""The questions: their wordings, the sentences that answer them, and how an answer is read.

One decision: a question has a closed list of whole sentences as answers, each with a value, and its truth is computed
from a `TumourFinding`. What is none of the sentences is unparsed, and never guessed. Every run asks `presence`: its
sentence has the verdict and the place (medad_core.llm.grammar).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict, Field

from medad_core.data.findings import HALVES, NUMBERS, PLACES, SIDES, SIZES, TumourFinding
from medad_core.data.location import CELLS
from medad_core.errors import UsageError
from medad_core.llm.grammar import GRAMMAR, answer_to, parse

OPENING = "This is a brain MRI image."
PRESENCE, SIDE, REGION = "presence", "side", "region"
NONE = "none"
NO_ANOMALY = "There is no anomaly in the image."


class Wordings(BaseModel):
    """How the question of a family may be put: learned, and held out to see what other words do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wordings: tuple[str, ...] = Field(min_length=12)
    held_out: tuple[str, ...] = Field(min_length=4)


@cache
def families() -> Mapping[str, Wordings]:
    """The families by name, in the order in which they are asked."""
    text = (files("medad_core.llm") / "questions.yaml").read_text(encoding="utf-8")
    return {name: Wordings.model_validate(given) for name, given in yaml.safe_load(text).items()}


@dataclass(frozen=True)
class Question:
    """One question: its family, and the place that a question of the family `region` asks for."""

    family: str
    place: str | None = None

    @property
    def name(self) -> str:
        """As settings and tables write it: `side`, `region: left half`."""
        return self.family if self.place is None else f"{self.family}: {self.place}"

    @property
    def is_yes_or_no(self) -> bool:
        """Whether its answers begin with "Yes" or "No"."""
        return self.family in (PRESENCE, REGION)

    def worded(self, number: int = 0, held_out: bool = False) -> str:
        """The words that the LLM is asked, in the wording of that number."""
        return f"{OPENING} {self.wordings(held_out)[number]}"

    def wordings(self, held_out: bool = False) -> tuple[str, ...]:
        """All wordings, without the words that open them for the LLM; the first is that of screening."""
        given = families()[self.family]
        wordings = given.held_out if held_out else given.wordings
        return tuple(wording.format(place=_at(self.place)) for wording in wordings)

    @property
    def answers(self) -> dict[str, str]:
        """The sentences that answer it, and their values."""
        return _ANSWERS[self.family](self.place)

    def read(self, text: str) -> str | None:
        """The value of an answer; None where it is none of the sentences (surrounding white space aside)."""
        if self.family == PRESENCE:
            answer = parse(text)
            return None if answer is None else answer.verdict
        return self.answers.get(text.strip())

    def truth(self, finding: TumourFinding | None) -> str:
        """The value of the right answer for a slice with this finding, None for a tumour-free one."""
        if self.family == PRESENCE:
            return "no" if finding is None else "yes"
        if self.family == REGION:
            return "yes" if finding is not None and finding.is_in(self.place) else "no"
        return NONE if finding is None else _VALUES[self.family](finding)

    def answer(self, finding: TumourFinding | None) -> str:
        """The right sentence."""
        if self.family == PRESENCE:
            return answer_to(None if finding is None else finding.cell)
        value = self.truth(finding)
        return next(sentence for sentence, meant in self.answers.items() if meant == value)


_VALUES = {
    "location": lambda finding: finding.cell,
    "side": lambda finding: finding.side,
    "size": lambda finding: finding.size,
    "number": lambda finding: finding.number,
}
_SIZE_WORDS = ("smaller than 1 cm", "between 1 and 3 cm", "larger than 3 cm")
_ANSWERS = {
    PRESENCE: lambda _: {sentence: answer.verdict for sentence, answer in GRAMMAR.items()},
    "location": lambda _: {f"The anomaly is at the {cell} of the image.": cell for cell in CELLS} | _NOTHING,
    "side": lambda _: dict(zip(_SIDE_SENTENCES, SIDES, strict=True)) | _NOTHING,
    "size": lambda _: (
        {f"The anomaly is {words}.": size for words, size in zip(_SIZE_WORDS, SIZES, strict=True)} | _NOTHING
    ),
    "number": lambda _: dict(zip(_NUMBER_SENTENCES, NUMBERS, strict=True)) | _NOTHING,
    REGION: lambda place: {
        f"Yes, there is an anomaly {_at(place)}.": "yes",
        f"No, there is no anomaly {_at(place)}.": "no",
    },
}
_NOTHING = {NO_ANOMALY: NONE}
_SIDE_SENTENCES = tuple(
    f"The anomaly is in {where}." for where in ("the left hemisphere", "the right hemisphere", "both hemispheres")
)
_NUMBER_SENTENCES = ("There is one anomaly in the image.", "There are several anomalies in the image.")


def _at(place: str | None) -> str:
    if place is None:
        return ""
    return f"{'in' if place in HALVES else 'at'} the {place} of the image"


def questions_of(names: Sequence[str]) -> tuple[Question, ...]:
    """The questions that settings name: a family, or `region: PLACE`; `region` alone asks for each half.

    Raises UsageError for an unknown one, for one that is named twice, and where `presence` is not the first.
    """
    asked: list[Question] = []
    for name in names:
        asked += _named(name)
    if not asked or asked[0].family != PRESENCE:
        raise UsageError("llm.questions: the first must be presence, whose answers are the verdicts")
    if twice := next((question.name for question in asked if asked.count(question) > 1), None):
        raise UsageError(f"llm.questions: {twice} is asked twice; name it once")
    return tuple(asked)


def _named(name: str) -> list[Question]:
    family, _, place = (part.strip() for part in name.partition(":"))
    if family not in families():
        raise UsageError(f"llm.questions: {name!r} is none of {', '.join(families())}")
    if not place:
        return [Question(family, half) for half in HALVES] if family == REGION else [Question(family)]
    if family != REGION or place not in PLACES:
        raise UsageError(f"llm.questions: {name!r}: only region has a place, and knows {', '.join(PLACES)}")
    return [Question(REGION, place)]


def words_sha256(names: Sequence[str]) -> str:
    """Hash of all that a converter learns of these families: wordings, places and sentences."""
    facts: list[object] = [[name, families()[name].model_dump()] for name in names]
    for name in names:
        facts += [Question(name, place).answers for place in (PLACES if name == REGION else (None,))]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def asked_sha256(questions: Sequence[Question]) -> str:
    """Hash of what is asked and may be answered."""
    facts = [[question.name, question.worded(), list(question.answers)] for question in questions]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

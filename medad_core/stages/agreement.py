"""What the language model says of a slice, beside what the map, the lesions and the mask say of the same thing.

One decision: map and mask are asked by the functions that give the truth of a question (`data.findings.find`,
`Question.truth`), so a statement is right about a mask here exactly where it is right in `questions.parquet`. Facts are
the lesions of `lesions.parquet` that the slice cuts: they have no specks below `evaluate.smallest_lesion_ml`. Their
place, side and size are those of whole lesions, so they are compared only in the slice where these are widest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medad_core.data.findings import NUMBERS, TumourFinding, size_of
from medad_core.data.location import cell_of
from medad_core.llm.questions import NONE, PRESENCE, REGION, Question
from medad_core.metrics.location import cell_steps
from medad_core.report.case import NEIGHBOUR, OTHER, SAME, Comparison, LesionFacts, Source, Statement

LOCATION = "location"
_OF_WHOLE = (LOCATION, "side", "size")


@dataclass(frozen=True)
class SliceEvidence:
    """What a slice shows. `found` is the finding of its map above the threshold, `true` that of its mask.

    Both are None where there is nothing, and `true` also where the case has no mask (`labelled`). `lesions` are those
    of the map that the slice `slice_index` cuts, the largest first. `shape` is that of the picture.
    """

    found: TumourFinding | None
    lesions: tuple[LesionFacts, ...]
    labelled: bool
    true: TumourFinding | None
    shape: tuple[int, int]
    slice_index: int


def statements_of(
    prediction: Mapping[str, Any], further: Iterable[Mapping[str, Any]], evidence: SliceEvidence
) -> tuple[Statement, ...]:
    """The statements of a row of PREDICTIONS and of the rows of QUESTIONS of the same slice, in the order asked.

    The sentence that answers `presence` states a place as well where it names one.
    """
    presence = Question(PRESENCE)
    answer = prediction["answer"]
    stated = [_statement(presence, presence, answer, prediction["verdict"], evidence)]
    if prediction["location"] is not None:
        stated.append(_statement(presence, Question(LOCATION), answer, prediction["location"], evidence))
    for row in further:
        if row["question"] != PRESENCE:
            family, _, place = row["question"].partition(": ")
            question = Question(family, place or None)
            stated.append(_statement(question, question, row["answer"], row["value"], evidence))
    return tuple(stated)


def _statement(asked: Question, about: Question, answer: str, value: str | None, evidence: SliceEvidence) -> Statement:
    """What an answer to the question `asked` states about the subject of the question `about`."""
    compared: list[Comparison] = []
    with_mask = None
    if value is not None:
        compared.append(_compare("map", about, value, about.truth(evidence.found)))
        of_facts = _said_by_lesions(about, evidence)
        if of_facts is not None:
            compared.append(_compare("facts", about, value, of_facts))
        if evidence.labelled:
            with_mask = _compare("mask", about, value, about.truth(evidence.true))
    return Statement(
        question=asked.name,
        subject=about.family,  # type: ignore[arg-type]  # pydantic checks it
        asked=asked.worded(),
        answer=answer,
        value=value,
        compared=tuple(compared),
        agrees=all(one.match == SAME for one in compared) if compared else None,
        with_mask=with_mask,
    )


def _compare(source: Source, about: Question, stated: str, value: str) -> Comparison:
    values = value.split(", ")  # the lesions of a slice may lie in several cells
    match = SAME if stated in values else OTHER
    if about.family == LOCATION and match == OTHER and (cell_steps([stated] * len(values), values) == 1).any():
        match = NEIGHBOUR
    return Comparison(source=source, value=value, match=match)


def _said_by_lesions(about: Question, evidence: SliceEvidence) -> str | None:
    """What the lesions say in terms of a question; None where they do not say it."""
    lesions = evidence.lesions
    if about.family == REGION:
        return None
    if about.family == PRESENCE:
        return "yes" if lesions else "no"
    if about.family in _OF_WHOLE and any(one.widest_slice != evidence.slice_index for one in lesions):
        return None
    return _SAID[about.family](lesions, evidence.shape) if lesions else NONE


def _cells(lesions: Sequence[LesionFacts], shape: tuple[int, int]) -> str:
    return ", ".join(dict.fromkeys(cell_of(one.row + 0.5, one.column + 0.5, *shape) for one in lesions))


def _side(lesions: Sequence[LesionFacts], _shape: tuple[int, int]) -> str:
    sides = {one.side for one in lesions}
    return sides.pop() if len(sides) == 1 else "both"


_SAID = {
    LOCATION: _cells,
    "side": _side,
    "size": lambda lesions, _shape: size_of(max(one.diameter_mm for one in lesions)),
    "number": lambda lesions, _shape: NUMBERS[len(lesions) > 1],
}

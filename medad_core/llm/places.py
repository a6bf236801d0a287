"""The place that a question in free words names.

One decision: places are read word by word. To a sentence encoder "in the left half" and "in the right half" are one and
the same, so similarity may never choose between them. Left and right are those of the picture, as in questions.yaml,
and only where the question says so ("left half", "top left", "of the image"); the patient's are the question of sides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from medad_core.facts.regions import REGIONS

_SYNONYMS = {
    "upper": "top",
    "lower": "bottom",
    "centre": "center",
    "middle": "center",
    "central": "center",
    "halves": "half",
    "hemispheres": "hemisphere",
}
_ROWS, _COLUMNS = {"top", "bottom"}, {"left", "right"}
_OF_PICTURE = re.compile(r"(left|right) of (the|this) (image|picture|slice)\b")
_STATED = "of the picture"  # stands among the words of a question that says so
_OF_PATIENT = {"hemisphere", "brain", "patient", "head"}
# Places that no question has: anatomy, other shares of the picture, and places beside something.
_OTHER_PLACES = """
    anterior posterior superior inferior medial lateral front back rear quadrant third quarter
    frontal parietal temporal occipital lobes insular thalamic ventricle ventricular cortical brainstem midbrain pons
    cerebellum cerebellar hippocampus ganglia midline skull behind beside near around outside beneath
"""
_UNKNOWN = {*_OTHER_PLACES.split(), *" ".join(REGIONS).split()} - {"brain", "corpus", "internal"}


@dataclass(frozen=True)
class NamedPlace:
    """The place that a question names: one of PLACES, None for none.

    `both_sides` says that it asks which of two sides or halves, as questions for the side do. `unclear` says why a
    place that it names cannot be taken for one of PLACES.
    """

    place: str | None = None
    both_sides: bool = False
    unclear: str = ""


def place_in(question: str) -> NamedPlace:
    """Read the place in a question in English."""
    words = {_SYNONYMS.get(word, word) for word in words_of(question)}
    if _OF_PICTURE.search(" ".join(words_of(question))):
        words.add(_STATED)
    if unclear := _unclear(words):
        return NamedPlace(unclear=unclear)
    named = " ".join((*(words & _ROWS), *(words & _COLUMNS)))
    if words >= _COLUMNS or ("half" in words and not named):
        return NamedPlace(both_sides=True)
    if not named:
        return NamedPlace("center" if "center" in words else None)
    return NamedPlace(f"{named} half" if "half" in words else named)


def _unclear(words: set[str]) -> str:
    """Why no place can be taken from these words; "" where one can, or none is named."""
    rows, columns = words & _ROWS, words & _COLUMNS
    if unknown := sorted(words & _UNKNOWN):
        return f"{unknown[0]!r} is no place that a question can name"
    if "center" in words and (rows or columns) and "or" in words:
        return "it names two places"
    if len(rows) > 1 or (len(columns) > 1 and (rows or "half" in words)):
        return "it names two places"
    if "half" in words and ((rows and columns) or "center" in words):
        return "its half is none of the left, right, top or bottom half"
    if len(columns) == 1 and (words & _OF_PATIENT or not (rows or words & {"half", _STATED})):
        return (
            f"{columns.pop()!r} may be the patient's or the picture's, which are not the same; ask for a half or a "
            "cell of the image (its left is the patient's right), or on which side the anomaly is"
        )
    return ""


def words_of(question: str) -> list[str]:
    """The words of a question in lower case, without punctuation; an apostrophe is part of its word."""
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", question.lower().replace("\u2019", "'"))

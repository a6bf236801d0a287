"""Questions in free words: which of the questions that a converter has learned is meant, if any.

One decision: free words are compared and never passed on. The language model is asked the learned question in the words
of screening, and the reply says which one it was. A question is compared with the learned wordings and with questions
that medad knows it cannot answer, because "What is the anomaly?" is nearer to "Where is the anomaly?" than most ways of
asking where. What a sentence encoder cannot tell is decided word by word: negation, and places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise

import torch
import yaml
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from medad_core.errors import UsageError
from medad_core.llm.places import NamedPlace, place_in, words_of
from medad_core.llm.questions import REGION, SIDE, Question, families
from medad_core.models.text import TextEncoder, load_text_encoder

ENCODER = "minilm"  # comes with medad; LEAST_SIMILARITY was chosen with it, whatever text encoder a run has
LEAST_SIMILARITY = 0.75  # chosen by tests/measure_ask.py
LONGEST = 300  # characters; MiniLM reads no more than 512 tokens
_NEGATIONS = """
    no not none nothing never neither nor non without free absent absence lack lacks exclude excluded rule ruled
    except excepting excluding besides apart elsewhere instead spared spares devoid hardly barely scarcely unlikely
    wrong false negative untrue
    normal healthy intact unremarkable inconspicuous unaffected clear fine ok okay cannot isnt arent doesnt dont cant
"""


_OTHER_SLICES = "slices previous next another adjacent neighbouring neighboring scans cases patients"


class _Asked(BaseModel):
    """A phrasing of the family `region`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: str
    asked: str


class Phrasings(BaseModel):
    """Questions in users' words: those that mean a learned one, by family, and those that must be declined."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    families: Mapping[str, tuple[str | _Asked, ...]]
    others: tuple[str, ...]
    negated: tuple[str, ...]
    places: tuple[str, ...]


@cache
def phrasings() -> Mapping[str, Phrasings]:
    """The phrasings to `choose` by and those to `report` with."""
    text = (files("medad_core.llm") / "phrasings.yaml").read_text(encoding="utf-8")
    return {name: Phrasings.model_validate(given) for name, given in yaml.safe_load(text).items()}


@dataclass(frozen=True)
class Match:
    """What a question in free words was understood as.

    `question` is the learned one that it is near to, None where it is near none, or nearest to one that medad cannot
    answer; `wording` is the nearest wording, and `similarity` their cosine. `declined` says why it is not answered, ""
    where it may be.
    """

    question: Question | None
    wording: str
    similarity: float
    declined: str = ""


Known = tuple[Question | None, str]


class Understanding:
    """Finds the learned question that is meant; embeds the wordings once."""

    def __init__(self, encoder: TextEncoder, least: float = LEAST_SIMILARITY, left_out: str = "") -> None:
        """`least` is the similarity below which a question is declined, `left_out` a phrasing not to know."""
        self.encoder = encoder
        self.least = least
        self.known = [one for one in _known() if one[1] != left_out]
        self.embedded = encoder.encode([wording for _, wording in self.known])

    def nearest(self, asked: str) -> Match:
        """The match of a question. Raises UsageError as `check_asked` does."""
        check_asked(asked)
        named = place_in(asked)
        known, embedded = self._candidates(named.place)
        similarity = (embedded @ self.encoder.encode([asked])[0]).clamp(-1, 1)
        best = int(similarity.argmax())
        question, wording = known[best]
        value = float(similarity[best])
        if value < self.least:
            reason = f"it is near no question that was learned (similarity {value:.2f}, {self.least} is needed)"
            return Match(None, wording, value, reason)
        return Match(question, wording, value, _declined(asked, question, wording, named))

    def _candidates(self, place: str | None) -> tuple[list[Known], Tensor]:
        """What is known, and its embeddings; wordings of the family region only for the place that is named."""
        if place is None:
            return self.known, self.embedded
        question = Question(REGION, place)
        own: list[Known] = [(question, wording) for wording in question.wordings()]
        return [*own, *self.known], torch.cat([self.encoder.encode([wording for _, wording in own]), self.embedded])


def _known() -> Iterator[Known]:
    """Learned wordings, users' phrasings of the same questions, and those that medad cannot answer; region aside."""
    given = phrasings()["choose"]
    for name in families():
        if name != REGION:
            for wording in (*Question(name).wordings(), *given.families[name]):
                yield Question(name), str(wording)
    for other in given.others:
        yield None, other


@cache
def load_understanding() -> Understanding:
    """The understanding with MiniLM, once a process. Raises WeightsError where it is not installed."""
    return Understanding(load_text_encoder(ENCODER))


def check_asked(asked: str) -> None:
    """Raise UsageError where a question has no words, or too many."""
    if not words_of(asked):
        raise UsageError('the question has no words; ask, for example, "Is there any anomaly in the image?"')
    if len(asked) > LONGEST:
        raise UsageError(f"the question has {len(asked)} characters; ask it in at most {LONGEST}")


def _declined(asked: str, question: Question | None, wording: str, named: NamedPlace) -> str:
    """Why a question that is near enough is not answered; "" where it may be."""
    if question is None:
        return f"medad cannot answer what it is nearest to: {wording}"
    if misread := _misread(words_of(asked)):
        return misread
    if named.unclear:
        return named.unclear
    nearest = question.wordings()[0]
    if question.place != named.place:
        return f"it names a place ({named.place}), and the nearest question has none: {nearest}"
    if named.both_sides and question.family != SIDE:
        return f"it asks which of two sides or halves, and the nearest question does not: {nearest}"
    return ""


def _misread(words: Sequence[str]) -> str:
    """Why an answer to a question with these words could be read as another one; "" where none does that."""
    turning = [word for word in words if word in _NEGATIONS.split() or word.endswith("n't")]
    turning += [f"{one} than" for one, after in pairwise(words) if one in ("other", "rather") and after == "than"]
    if turning:
        return f"{turning[0]!r} may turn it round, and its answer could be read as the opposite"
    if elsewhere := [word for word in words if word in _OTHER_SLICES.split()]:
        return f"{elsewhere[0]!r} asks of more than one slice; medad report tells of all"
    return ""

"""Chooses the least similarity of `medad ask`, and measures what it understands: `python tests/measure_ask.py`.

The similarity is chosen on the phrasings to `choose` by (medad_core/llm/phrasings.yaml), each of which is left out of
what is known when it is asked; the numbers are of the phrasings to `report`. It prints both, with Wilson's 95 %
intervals: n is a number of phrasings, which one person wrote, so they say nothing of other users.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from medad_core.data.findings import PLACES
from medad_core.llm.questions import REGION, Question
from medad_core.llm.understanding import ENCODER, LEAST_SIMILARITY, Match, Understanding, phrasings
from medad_core.models.text import TextEncoder, load_text_encoder

KINDS = ("meant", "others", "negated", "places")
HELD_OUT = {"choose": slice(0, 2), "report": slice(2, 4)}
DECLINED = 0.9  # of the questions to choose by that medad cannot answer
BATCH = 32


@dataclass(frozen=True)
class Tried:
    """A phrasing, its kind, the question that it means (None where it must be declined), and how it was matched."""

    asked: str
    kind: str
    meant: Question | None
    match: Match

    def is_right(self, least: float) -> bool:
        """Whether it is answered as it was meant, or declined as it must be."""
        declined = bool(self.match.declined) or self.match.similarity < least
        return declined if self.meant is None else not declined and self.match.question == self.meant


class Remembering:
    """A text encoder that encodes each sentence once, some at a time."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.width = encoder.width
        self.known: dict[str, torch.Tensor] = {}

    def encode(self, sentences: Sequence[str]) -> torch.Tensor:
        new = [sentence for sentence in dict.fromkeys(sentences) if sentence not in self.known]
        for start in range(0, len(new), BATCH):
            some = new[start : start + BATCH]
            self.known |= dict(zip(some, self.encoder.encode(some), strict=True))
        return torch.stack([self.known[sentence] for sentence in sentences])


def meant_questions(half: str) -> Iterator[tuple[str, Question]]:
    """Phrasings of one half that mean a learned question; the held-out wordings ask for each place in turn."""
    for name, given in phrasings()[half].families.items():
        for one in given:
            yield (one, Question(name)) if isinstance(one, str) else (one.asked, Question(name, one.place))
        wordings = range(4)[HELD_OUT[half]]
        of_places = [Question(name, place) for place in PLACES] if name == REGION else [Question(name)] * len(wordings)
        for number, question in enumerate(of_places):
            yield question.wordings(held_out=True)[wordings[number % len(wordings)]], question


def try_half(half: str, encoder: TextEncoder) -> list[Tried]:
    """All phrasings of one half, matched whatever their similarity is; each is unknown when it is asked."""
    remembering = Remembering(encoder)

    def match(asked: str) -> Match:
        return Understanding(remembering, least=-1, left_out=asked).nearest(asked)

    given = phrasings()[half]
    tried = [Tried(asked, "meant", meant, match(asked)) for asked, meant in meant_questions(half)]
    for kind in KINDS[1:]:
        tried += [Tried(asked, kind, None, match(asked)) for asked in getattr(given, kind)]
    return tried


def choose_similarity(tried: Sequence[Tried]) -> float:
    """The lowest similarity, in steps of 0.01, with which nine in ten of the others are declined."""
    others = [one for one in tried if one.kind == "others"]
    steps = (round(least, 2) for least in np.arange(0, 1, 0.01))
    return next(least for least in steps if share_right(others, least) >= DECLINED)


def share_right(tried: Sequence[Tried], least: float) -> float:
    return float(np.mean([one.is_right(least) for one in tried]))


def report(tried: Sequence[Tried], least: float) -> None:
    for kind in KINDS:
        of_kind = [one for one in tried if one.kind == kind]
        right = sum(one.is_right(least) for one in of_kind)
        spread = binomtest(right, len(of_kind)).proportion_ci(method="wilson")
        share = right / len(of_kind)
        print(f"  {kind:8} {right} of {len(of_kind)} right: {share:.3f} ({spread.low:.3f} to {spread.high:.3f})")
        for one in (one for one in of_kind if not one.is_right(least)):
            print(f"    {one.asked!r}: {one.match}")
    meant = [one for one in tried if one.kind == "meant"]
    other = [one for one in meant if one.match.similarity >= least and not one.is_right(least)]
    print(f"  {sum(not one.match.declined for one in other)} of {len(meant)} meant: another question is answered")
    judged = [one for one in tried if one.kind in ("meant", "others")]
    scores = [0.0 if one.match.question is None else one.match.similarity for one in judged]
    print(
        f"  AUROC of the similarity, meant against others: {roc_auc_score([bool(o.meant) for o in judged], scores):.3f}"
    )


def main() -> None:
    encoder = load_text_encoder(ENCODER)
    halves = {half: try_half(half, encoder) for half in HELD_OUT}
    least = choose_similarity(halves["choose"])
    print(f"least similarity: {least}; medad_core/llm/understanding.py has {LEAST_SIMILARITY}")
    for half, tried in halves.items():
        print(f"{half}:")
        report(tried, least)


if __name__ == "__main__":
    main()

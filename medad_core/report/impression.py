"""The two sentences that a report begins with.

One decision: both are made by template from what is measured and counted, never by the language model, and neither is a
diagnosis. The first says what the map shows, the second what the language model answers and whether the two agree.
"""

from __future__ import annotations

from collections.abc import Sequence

from medad_core.report.case import KeySlice, Lesions, Screened
from medad_core.report.words import ML, MM, Words


def impression(
    found: Lesions,
    ends: tuple[int, int],
    limits: tuple[float, float],
    screened: Screened,
    key_slices: Sequence[KeySlice],
    words: Words,
) -> tuple[str, str]:
    """The sentences on a case.

    `ends` are the first and last slice seen, `limits` the threshold of the map and the smallest volume of a lesion.
    """
    return _of_map(found, ends, limits, words), _of_answers(screened, key_slices[0], words)


def _of_map(found: Lesions, ends: tuple[int, int], limits: tuple[float, float], words: Words) -> str:
    first, last = ends
    threshold, smallest = map(words.plain, limits)
    where = words.counted("in_slices", last - first + 1, first=first, last=last)
    if not found.each:
        return words("impression.nothing", smallest=smallest, threshold=threshold, range=where)
    largest = found.each[0]
    regions = words("impression.regions", regions=words.regions(largest.regions)) if largest.regions else ""
    at_least = words("impression.at_least")
    size = f"{words.number(largest.diameter_mm, MM)} × {words.number(largest.perpendicular_mm, MM)}"
    return words.counted(
        "impression.found",
        found.lesions,
        at_least=at_least if found.is_cut else "",
        volume=words.number(found.volume_ml, ML),
        threshold=threshold,
        range=where,
        size=f"{at_least if largest.is_cut else ''}{size}",
        side=words.known("side_of_case", largest.side),
        regions=regions,
    )


def _of_answers(screened: Screened, key_slice: KeySlice, words: Words) -> str:
    """`key_slice` is that of the largest lesion, or the one with the highest score."""
    other = [one.subject for one in key_slice.statements if one.agrees is False]
    both = [one for one in key_slice.statements if len(one.compared) == 2]  # with map and facts
    agreed = [one.subject for one in both if one.agrees and one.subject not in other]
    which = ("agrees" if not other else "agrees_in_part" if agreed else "disagrees") if agreed or other else "unread"
    agreement = words(
        f"impression.{which}",
        slice=key_slice.slice_index,
        agreed=_subjects(agreed, words),
        other=_subjects(other, words),
    )
    seen = words.counted("slices", screened.slices)
    return words("impression.answers", yes=screened.slices_yes, slices=seen, agreement=agreement)


def _subjects(subjects: Sequence[str], words: Words) -> str:
    return words.joined([words.known("subjects", one) for one in dict.fromkeys(subjects)])

"""The worklist: cases in the order in which somebody with little time should look at them.

One decision: the order is a rule that a reader can check, and no score of its own. A case with a finding of both map
and language model comes before one with a finding of either, and that before one with none. Within these, the larger
volume comes first, then the higher p(yes), then the higher score of the map, then the name. Numbers count as they are
written, so the lists of several runs make one list in the same order. What makes an entry doubtful stands beside it and
does not move it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medad_core.facts.case import CaseFacts

NEAR_HALF = (0.4, 0.6)  # p(yes) between these is a coin toss
HEADS = (
    "place",
    "case_id",
    "patient",
    "finding",
    "volume_ml",
    "is_cut",
    "lesions",
    "side",
    "highest_p_yes",
    "highest_score",
    "slices_yes",
    "slices",
    "look_at",
    "doubts",
)
FINDINGS = ("map and language model", "map only", "language model only", "none")


@dataclass(frozen=True)
class Screened:
    """What a case's predictions say: highest p(yes) and map score, slices answered "Yes", and answers not readable.

    The highest are None where no slice has any. `near_half` counts the slices whose p(yes) is near one half, `unstable`
    those whose verdict may be another when the LLM's engine has more or less to do. `best_slice` is the one with the
    highest map score.
    """

    patient: str
    slices: int
    highest_p_yes: float | None
    highest_score: float | None
    slices_yes: int
    unreadable: int
    near_half: int
    best_slice: int
    unstable: int = 0


@dataclass(frozen=True)
class Entry:
    """One case of the worklist. `look_at` is the slice to look at first."""

    facts: CaseFacts
    screened: Screened
    warnings: tuple[str, ...]

    @property
    def finding(self) -> str:
        """One of FINDINGS: who sees something."""
        return finding_of(bool(self.facts.found.placed), self.screened.slices_yes > 0)

    @property
    def cells(self) -> dict[str, object]:
        """The columns HEADS of `worklist.csv` but the place."""
        found, screened = self.facts.found, self.screened
        p_yes, score = (_written(value) for value in (screened.highest_p_yes, screened.highest_score))
        values = (self.facts.case_id, screened.patient, self.finding, f"{found.volume_ml:.2f}", found.is_cut)
        of_slices = (p_yes, score, screened.slices_yes, screened.slices, self.look_at, "; ".join(self.doubts))
        return dict(zip(HEADS[1:], (*values, len(found.placed), found.side or "", *of_slices), strict=True))

    @property
    def look_at(self) -> int:
        """Where the largest lesion is widest; without one, the slice with the highest score."""
        placed = self.facts.found.placed
        return placed[0].lesion.widest_slice if placed else self.screened.best_slice

    @property
    def doubts(self) -> tuple[str, ...]:
        """What makes the entry uncertain."""
        screened = self.screened
        doubts = []
        if self.finding in FINDINGS[1:3]:
            doubts.append(f"finding of the {self.finding}")
        if screened.near_half:
            doubts.append(f"p(yes) near one half in {screened.near_half} of {screened.slices} slices")
        if screened.unstable:
            doubts.append(f"verdicts that may flip with the load of the LLM's engine: {screened.unstable}")
        if screened.unreadable:
            doubts.append(f"answers that could not be read: {screened.unreadable}")
        return (*doubts, *self.warnings)


def finding_of(of_map: bool, of_llm: bool) -> str:
    """One of FINDINGS, from who sees something."""
    return FINDINGS[2 * (not of_map) + (not of_llm)]


def worklist(
    facts: Sequence[CaseFacts], screened: Mapping[str, Screened], warned: Sequence[tuple[str, str]]
) -> list[Entry]:
    """The entries of all cases, the most urgent first."""
    warnings: dict[str, list[str]] = {}
    for case_id, warning in warned:
        warnings.setdefault(case_id, []).append(warning)
    entries = [Entry(one, screened[one.case_id], tuple(warnings.get(one.case_id, ()))) for one in facts]
    return sorted(entries, key=lambda entry: urgency(entry.cells))


def urgency(cells: Mapping[str, object]) -> tuple:
    """Sorts cells of `worklist.csv`, the most urgent first; where nothing was measured, last."""
    tier = {FINDINGS[0]: 0, FINDINGS[-1]: 2}.get(str(cells["finding"]), 1)
    numbers = (str(cells[name]) for name in ("volume_ml", "highest_p_yes", "highest_score"))
    return (tier, *(-float(number) if number else 1.0 for number in numbers), cells["case_id"])


def worklist_rows(entries: Sequence[Entry]) -> list[tuple]:
    """The rows of `worklist.csv`, with the columns HEADS."""
    return [(place, *entry.cells.values()) for place, entry in enumerate(entries, 1)]


def _written(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"

"""When a patient was examined: the date of a table, or the number in the name of a visit.

One decision: an order is known or it is not. Dates come first; without them, visits whose names differ in their numbers
only (`ses-01` and `ses-02`, `000` and `001`, `week-008` and `week-044`) are in the order of these numbers. Words such
as `pre` and `baseline` are in no order, two examinations of one day with nothing else to tell them apart neither, nor
names such as `20.12.2023`, whose numbers sort by the day of the month, nor numbers that contradict the dates there are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from medad_core.errors import UsageError

BY_DATE, BY_VISIT = "date", "visit"
_ISO = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_DATE_AS_VISIT = re.compile(r"(19|20)\d{2}-?\d{2}-?\d{2}", re.ASCII)  # as the layout of visits has it
_YEAR_LAST = re.compile(r"(?<!\d)\d{1,2}[-_.]?\d{1,2}[-_.]?(19|20)\d{2}(?!\d)", re.ASCII)
_NUMBER = re.compile(r"\d+", re.ASCII)
_NUMBER_AND_SIGN = re.compile(r"[-_.]?\d+", re.ASCII)


@dataclass(frozen=True)
class Visit:
    """An examination of a patient: its case, the name of the visit ("" for none), and the date, where it is known."""

    case_id: str
    name: str
    day: date | None


@dataclass(frozen=True)
class Visits:
    """The examinations of a patient: in their order, which is known by date or visit; or `by` is "", with a reason."""

    visits: tuple[Visit, ...]
    by: str
    reason: str = ""


def check_date(text: str, where: str) -> str:
    """`text` if it is a date as 2024-01-31, or empty. Raises UsageError that begins with `where`."""
    if text:
        try:
            if _ISO.fullmatch(text):
                date.fromisoformat(text)
                return text
        except ValueError:
            pass
        raise UsageError(f"{where}: date is {text!r}; give it as 2024-01-31")
    return text


def visit_of(case_id: str, name: str | None, day: str | None) -> Visit:
    """A visit with the date `day` (ISO); without one, with that which its own name is, such as 20240131."""
    text = day or (name if name and _DATE_AS_VISIT.fullmatch(name) else None)
    try:
        return Visit(case_id, name or "", None if text is None else date.fromisoformat(text))
    except ValueError:  # eight digits that are no date
        return Visit(case_id, name or "", None)


def in_order(visits: Sequence[Visit]) -> Visits:
    """The visits of one patient in their order, by case where it is not known."""
    by_case = tuple(sorted(visits, key=lambda visit: visit.case_id))
    numbers = _numbers(by_case)
    days = [visit.day for visit in by_case]
    if None not in days:
        keys = [(day, numbers.get(visit.case_id, ())) for day, visit in zip(days, by_case, strict=True)]
        by, reason = BY_DATE, "two are of the same date"
    else:
        keys = [(None, numbers.get(visit.case_id, ())) for visit in by_case]
        by, reason = BY_VISIT, "not all have a date, and their visits have no numbers in one form"
    if len(set(keys)) < len(keys):
        return Visits(by_case, "", reason)
    ordered = tuple(visit for _, visit in sorted(zip(keys, by_case, strict=True), key=lambda pair: pair[0]))
    known = [visit.day for visit in ordered if visit.day is not None]
    if known != sorted(known):
        return Visits(by_case, "", "the numbers of their visits contradict the dates that are given")
    return Visits(ordered, by)


def _numbers(visits: Sequence[Visit]) -> dict[str, tuple[int, ...]]:
    """The numbers in the names of visits, by case; none where the names differ in anything else, or end with a year."""
    if any(_YEAR_LAST.search(visit.name) for visit in visits):
        return {}
    words = {_NUMBER_AND_SIGN.sub("", visit.name.casefold()) for visit in visits}
    numbers = {visit.case_id: tuple(map(int, _NUMBER.findall(visit.name))) for visit in visits}
    return numbers if len(words) == 1 and all(numbers.values()) else {}

"""What the numbers say in words, above all where the proposed scheme is not the best.

One decision: sentences compare what is printed, at three decimals, and take the other row's best rule where rules
differ; a claim that the reader could not check against the table is not made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from medad_core.metrics.printed import interval_text, value_text
from medad_core.reproduce.presentation.sheet import AUROC, HEADLINE, MAIN, Column, Line, Sheet
from medad_core.reproduce.presentation.words import bracketed, rule_words, signed
from medad_core.reproduce.schema import PROPOSED, ROWS

FEW = 10  # patients below which a bootstrap's interval is too narrow to accuse anyone by


def claims(sheet: Sheet, group: str) -> list[str]:
    """Sentences about a group: the rows that beat the proposed scheme in a headline column, and the control."""
    return [*_beaten(sheet, group), *_control(sheet, group)]


def _beaten(sheet: Sheet, group: str) -> Iterator[str]:
    if all(line.value is None for line in sheet.of_row(group, PROPOSED)):
        yield "The proposed scheme has no numbers here, so nothing is compared with it."
        return
    beaten = False
    for row in sheet.rows:
        wins = [] if row.name == PROPOSED else _wins(sheet, group, row.name)
        if wins:
            beaten = True
            first, *more = wins
            others = "".join(f"; also a {win.what}: {win.numbers}" for win in more)
            yield f"{row.title} has a {first.what} than the proposed scheme: {first.numbers}{others}."
    if not beaten:
        titles = ", ".join(column.title for column in HEADLINE)
        yield f"No other row is better than the proposed scheme in any of: {titles}."


def _wins(sheet: Sheet, group: str, row: str) -> list[_Win]:
    """The headline columns in which a row is better."""
    wins = (_win(sheet, group, row, column) for column in HEADLINE)
    return [win for win in wins if win is not None]


def _win(sheet: Sheet, group: str, row: str, column: Column) -> _Win | None:
    """In which way a row is better in a column: by its main rule if that is enough, else by its best one."""
    reference = sheet.find(group, PROPOSED, column)
    rules = [column.rule]
    if column.rule == MAIN:
        same = (column.level, column.metric)
        rules += [line.rule for line in sheet.of_row(group, row) if (line.level, line.metric) == same]
    candidates = (sheet.find(group, row, replace(column, rule=rule)) for rule in dict.fromkeys(rules))
    lines = [line for line in candidates if line is not None and line.value is not None]
    if reference is None or reference.value is None or not lines:
        return None
    gains = {line: _gain(line, reference) * (-1 if column.low_is_better else 1) for line in lines}
    best = lines[0] if gains[lines[0]] > 0 else max(lines, key=gains.__getitem__)
    return _Win(best, reference, column, sheet.facts.patient_slices) if gains[best] > 0 else None


def _gain(line: Line, reference: Line) -> float:
    """Over the seeds that both have, where they differ in them; else of what is printed."""
    if line.seeds != reference.seeds and line.difference is not None:
        return round(line.difference, 3)
    return round(line.value, 3) - round(reference.value, 3)


@dataclass(frozen=True)
class _Win:
    """A line that is better than the proposed scheme's."""

    line: Line
    reference: Line
    column: Column
    patient_slices: int

    @property
    def what(self) -> str:
        """As in: higher accuracy by the rule “Youden”."""
        direction = "lower" if self.column.low_is_better else "higher"
        if self.line.rule in ("", "answer", "always"):
            return f"{direction} {self.column.title}"
        return f"{direction} {self.column.title} by the rule “{rule_words(self.line.rule, self.patient_slices)}”"

    @property
    def numbers(self) -> str:
        """Both values, and the interval of their difference where there is one."""
        values = f"{value_text(self.line.value)} against {value_text(self.reference.value)}"
        if self.line.difference_low is None or self.line.difference_high is None:
            return values
        among = "" if self.line.seeds == self.reference.seeds else " over the seeds of both"
        spread = interval_text(self.line.difference_low, self.line.difference_high, signed)
        return f"{values} (difference{among} {spread})"


def _control(sheet: Sheet, group: str) -> Iterator[str]:
    """The proof that the answer comes from the map: without the slice's own map it must be at chance."""
    line = sheet.find(group, "shuffled", AUROC)
    if line is None or line.value is None:
        return
    head = f"Control “{ROWS['shuffled'].title}”: {AUROC.title} {value_text(line.value)}"
    if line.ci_low is None or line.ci_high is None:
        yield f"{head}, without an interval to judge it by; it must be at chance, 0.5."
        return
    head += bracketed(line.ci_low, line.ci_high)
    tested = next(facts.tested_patients for facts in sheet.groups if facts.name == group)
    if line.ci_low <= 0.5 <= line.ci_high:
        yield f"{head}, at chance, as it must be."
    elif tested < FEW:
        too_few = f"{tested} {group} are too few for the interval to say whether it is"
        yield f"{head}; it must be at chance, 0.5, and {too_few}."
    else:
        yield f"{head}, not at chance, which it must be: the answers do not come from the map alone."

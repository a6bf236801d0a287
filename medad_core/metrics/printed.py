"""How a number is printed, and its interval, and a table of them.

One decision: three decimals everywhere, because the intervals of a few dozen patients make a fourth meaningless.
Markdown cells are not padded to a common width, as pandas would pad them: one long note would widen every line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

DASH = "–"


def value_text(value: float | None, digits: int = 3) -> str:
    """A number with that many decimals and a minus sign of typographers (U+2212); a dash for none."""
    return DASH if value is None else f"{value + 0.0:.{digits}f}".replace("-", "−")


def interval_text(
    low: float | None, high: float | None, write: Callable[[float | None], str] = value_text, between: str = " to "
) -> str:
    """An interval in words, a dash for none; `write` prints its ends."""
    return DASH if low is None or high is None else f"{write(low)}{between}{write(high)}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> str:
    """A table in Markdown; `align` has one letter a column, l or r. Rows that are shorter end in empty cells."""
    rules = ["---:" if side == "r" else "---" for side in align]
    padded = [[*row, *[""] * (len(header) - len(row))] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rules, *padded])

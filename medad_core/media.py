"""Texts from outside (names, paths, reasons) in what medad writes: terminal and logs, CSV, Markdown, HTML.

One decision: one function a medium, and every writer of the medium calls it. What cannot be seen is shown as Python
writes it: `\\x1b`. So a name can neither move the cursor, nor begin a line, nor turn the direction of reading.
In CSV it is kept instead, as `\\u{1b}`: `read_csv` gives back exactly what `write_csv` got.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))  # controls, marks of direction, half characters, ends of lines

# What a spreadsheet takes for a formula, also after the sign that separates fields in half of Europe; and a number.
_SIGNS = r"[=+\-@＝＋－＠]"
_FORMULA = re.compile(f"'*{_SIGNS}")
_SEPARATED = re.compile(rf";(?=\s*{_SIGNS})")
_QUOTED = re.compile(f"'+{_SIGNS}")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_PLAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_. -]*[A-Za-z0-9_.-])?")  # most cells: nothing of them can be misread
_ENDS = re.compile(r"\A\s+|\s+\Z")
_KEPT = re.compile(r"\\u\{(10[0-9a-f]{4}|[0-9a-f]{1,5})\}")
_KEPT_MARK = "\\u{"

# What Markdown reads as its own within a line (an underscore only at the edge of a word), and at the start of one.
_MARKDOWN = re.compile(r"[\\|<*`\[&~]|(?<![^\W_])_|_(?![^\W_])")
_MARKDOWN_START = re.compile(r"\A(?:(\d+)(?=[.)])|(?=[#>+=-]))")


def is_unseen(character: str) -> bool:
    """Whether a character has no shape of its own: a control, a mark of direction, an end of a line."""
    return unicodedata.category(character) in _UNSEEN


def visible(text: str, keep: str = "") -> str:
    """`text` on one line, as a terminal and a log show it; the characters in `keep` stay."""
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if is_unseen(character) and character not in keep else character
        for character in text
    )


def csv_cell(value: object) -> object:
    """A value as it is written into a CSV file: numbers as they are, a text so that no spreadsheet computes it.

    A text that is a number stays one: `-5` is no formula.
    """
    if not isinstance(value, str) or not value or _PLAIN.fullmatch(value):
        return value
    text = value.replace(_KEPT_MARK, _keep("\\") + _KEPT_MARK[1:])
    if not text.isprintable():  # a cohort has a million cells
        text = _kept(text, is_unseen)
    text = _ENDS.sub(lambda match: _kept(match[0], str.isspace), text)
    text = _SEPARATED.sub(lambda match: _keep(match[0]), text)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def csv_value(cell: str) -> str:
    """The text that `csv_cell` has written as `cell`."""
    if not cell.startswith("'") and "\\" not in cell:
        return cell
    text = cell[1:] if _QUOTED.match(cell) else cell
    return _KEPT.sub(lambda match: chr(int(match[1], 16)), text)


def write_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The text of a CSV file. `None` is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([csv_cell(value) for value in row] for row in rows)
    return text.getvalue()


def read_csv(text: str) -> Iterator[dict[str, str]]:
    """The rows of a file that `write_csv` wrote, by column. Raises ValueError if a row has not as many as the first."""
    rows = csv.reader(io.StringIO(text, newline=""))
    header = next(rows, [])
    is_plain = "'" not in text and "\\" not in text  # then all of a million cells are as they were written
    for row in filter(None, rows):
        yield dict(zip(header, row if is_plain else map(csv_value, row), strict=True))


def markdown_text(text: str) -> str:
    """`text` on one line as Markdown prints it, also in the cell of a table."""
    escaped = _MARKDOWN.sub(r"\\\g<0>", visible(" ".join(text.split())))
    return _MARKDOWN_START.sub(r"\1\\", escaped)


def html_text(value: object) -> object:
    """What a page gets to print before it is escaped: texts without unseen characters, all else as it is."""
    return visible(value, keep="\n\t") if type(value) is str else value


def file_name(text: str) -> str:
    """A name as that of a file; no two names give the same."""
    return text.replace("%", "%25").replace("/", "%2F").replace("\\", "%5C")


def _kept(text: str, is_meant: Callable[[str], bool]) -> str:
    return "".join(_keep(character) if is_meant(character) else character for character in text)


def _keep(character: str) -> str:
    return f"{_KEPT_MARK}{ord(character):x}}}"

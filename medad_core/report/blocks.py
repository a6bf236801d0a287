"""What a report is made of, before it is Markdown, HTML or PDF: sections of notices, texts, lists, tables and pictures.

One decision: the forms differ in looks only. Each writes the same blocks in the same order, so none says more or less
than another. Texts are plain; each form escapes them for its medium.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Text:
    """A paragraph. `lead` is what is read first, `notice` is a warning, `phantom` says that there is no patient."""

    text: str
    kind: Literal["plain", "lead", "notice", "phantom", "small"] = "plain"


@dataclass(frozen=True)
class Bullets:
    """Short statements, one a line."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """A cell of a table. `spoken` are words of the language model, which every form puts in quotation marks.

    `mark` says of an agreement what it is, for its colour.
    """

    text: str
    spoken: bool = False
    mark: Literal["", "same", "other", "open"] = ""


@dataclass(frozen=True)
class Table:
    """A table with the shares of the width that its columns have; `title` may be empty. Numbers stand on the right."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    widths: tuple[int, ...]
    numeric: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Picture:
    """The key image of a slice: the file beside the report, what it shows, and a text in place of it."""

    slice_index: int
    file: str
    caption: str


Block: TypeAlias = Text | Bullets | Table | Picture


@dataclass(frozen=True)
class Section:
    """Blocks under a heading. `key` names the section in every language."""

    key: str
    title: str
    blocks: tuple[Block, ...]


def kind_of(block: Block) -> str:
    """The name of a block's class in small letters, by which templates know it."""
    return type(block).__name__.lower()

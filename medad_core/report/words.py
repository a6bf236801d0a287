"""The wording of reports of cases, in the language that `report.language` names.

One decision: a catalogue holds whole sentences with named gaps, one file a language, and all files have the same keys
and gaps. Numbers are rounded by one rule and get the language's decimal sign. What no catalogue knows, such as a
warning or the reason of an error, stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, get_args

import yaml

from medad_core.config import Language
from medad_core.data.location import CELLS

LANGUAGES: tuple[Language, ...] = get_args(Language)
# Digits after the decimal sign, as in `worklist.csv` and on the page.
ML, MM, SHARE = 2, 0, 3


@dataclass(frozen=True)
class Words:
    """The catalogue of one language. A key is a path such as `impression.title`."""

    language: Language
    entries: Mapping[str, Any]

    def __call__(self, key: str, **values: object) -> str:
        """The text of a key with its gaps filled. Raises KeyError for a key that is not in the catalogue."""
        return str(self._entry(key)).format(**values)

    def counted(self, key: str, count: int, **values: object) -> str:
        """The text of a key that has `one` and `other`; `{count}` is the count."""
        return self(f"{key}.{'one' if count == 1 else 'other'}", count=count, **values)

    def known(self, group: str, text: str) -> str:
        """The catalogue's word for a text of a closed list; the text itself where the list does not have it."""
        return str(self._entry(group).get(text, text))

    def number(self, value: float | None, digits: int) -> str:
        """A number with so many digits after the decimal sign; a dash for None."""
        return self("none") if value is None else f"{value:z.{digits}f}".replace(".", self("decimal"))

    def plain(self, value: float) -> str:
        """A number of the settings, such as a threshold, with as many digits as it has."""
        return f"{value:g}".replace(".", self("decimal"))

    def listed(self, items: Iterable[str]) -> str:
        """Texts as a list; a dash for none."""
        return self("list").join(items) or self("none")

    def joined(self, items: Sequence[str]) -> str:
        """Texts as a list within a sentence, the last after "and"."""
        return self("and").join([self("list").join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)

    def regions(self, names: Iterable[str]) -> str:
        """Names of regions as a list."""
        return self.listed(self.known("regions", name) for name in names)

    def place(self, name: str) -> str:
        """A half or a cell of the picture."""
        return self.known("cells" if name in CELLS else "places", name)

    def value(self, subject: str, text: str) -> str:
        """A value of a statement: a cell or cells for a location, a side, or one of the other values."""
        if subject == "location":
            return self.listed(self.known("cells" if one in CELLS else "values", one) for one in text.split(", "))
        side = self._entry("sides").get(text) if subject == "side" else None
        return side or self.known("values", text)

    def _entry(self, key: str) -> Any:
        entry: Any = self.entries
        for name in key.split("."):
            entry = entry[name]
        return entry


@cache
def words_of(language: Language) -> Words:
    """The catalogue of a language."""
    text = (files("medad_core.report") / "wording" / f"{language}.yaml").read_text(encoding="utf-8")
    return Words(language, yaml.load(text, yaml.BaseLoader))

"""Texts from outside (names, paths, reasons) in what medad writes: on a terminal and in logs.

One decision: one function a medium, and every writer of the medium calls it. What cannot be seen is shown as Python
writes it: `\\x1b`. So a name can neither move the cursor, nor begin a line of its own, nor turn the reading direction.
"""

from __future__ import annotations

import unicodedata

_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))  # controls, marks of direction, half characters, ends of lines


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

"""The encoding of what medad prints: no character ever ends a command.

One decision: a character that the terminal lacks is printed as a plain one that stands for it, else as its code. So the
encoding of the terminal stays what it is.
"""

from __future__ import annotations

import codecs
import sys

HANDLER = "medad"
PLAIN = {
    "–": "-",
    "—": "-",
    "−": "-",
    "…": "...",
    "×": "x",
    "·": ".",
    "✓": "+",
    "✗": "x",
    "→": "->",
    "≤": "<=",
    "≥": ">=",
    "’": "'",
    "“": '"',
    "”": '"',
}
DRAWN = ((0x2500, 0x257F, "-"), (0x2580, 0x259F, "#"), (0x2800, 0x28FF, "*"))  # lines, blocks, braille (spinners)


def make_output_safe() -> None:
    """Let stdout and stderr print any text, whatever their encoding."""
    codecs.register_error(HANDLER, stand_in)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # none where the stream is closed or replaced
        if reconfigure is not None:
            reconfigure(errors=HANDLER)


def stand_in(error: UnicodeError) -> tuple[str, int]:
    """A handler of `codecs.register_error`: ASCII for what cannot be encoded, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(character: str) -> str:
    if character in PLAIN:
        return PLAIN[character]
    drawn = (text for first, last, text in DRAWN if first <= ord(character) <= last)
    return next(drawn, character.encode("ascii", "backslashreplace").decode())

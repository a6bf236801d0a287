"""The encoding of what medad prints: no character ever ends a command.

One decision: inside, everything is UTF-8, also names of files and files that a library opens without naming an
encoding; only what is printed is in the encoding of the terminal. Python decides the former when it starts. So a
command that was started in another encoding starts again, as the same process. A character that the terminal lacks is
printed as a plain one that stands for it, else as its code.
"""

from __future__ import annotations

import codecs
import os
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


def run_in_utf8() -> None:
    """Start this command again in Python's UTF-8 mode, unless it is UTF-8 already. Does not return where it does."""
    if sys.flags.utf8_mode or codecs.lookup(sys.getfilesystemencoding()).name == "utf-8" or not sys.executable:
        return
    os.environ["PYTHONUTF8"] = "1"
    if sys.stdout is not None and sys.stdout.encoding:
        os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


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

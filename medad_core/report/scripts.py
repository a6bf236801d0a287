"""Data for the pages' own scripts: a file that gives a value a name.

One decision: data is a script of its own and no request, because a page from a disk may ask for nothing else; and no
text in it can end the script that it stands in, wherever somebody puts it.
"""

from __future__ import annotations

import json

_ESCAPED = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


def script_of(name: str, value: object) -> str:
    """JavaScript that sets the constant `name` to `value`, in ASCII. Raises ValueError for numbers that JSON lacks."""
    return f"const {name} = {json_text(value)};\n"


def json_text(value: object) -> str:
    """JSON in ASCII without any character that HTML gives a meaning to."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).translate(_ESCAPED)

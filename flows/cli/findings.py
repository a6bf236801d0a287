"""What the doctor finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: what was looked at, the result, and what to do about it."""

    state: Literal["ok", "note", "fault"]
    what: str
    result: str
    remedy: str = ""

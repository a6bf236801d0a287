"""The fonts of PDF reports: DejaVu Sans, which comes with matplotlib, and NanumGothic for Korean.

One decision: no glyph is dropped silently. A character that neither font has is printed as its code point, `U+1F9E0`.
Of the package koreanize-matplotlib only the files are read.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal

from fontTools.ttLib import TTFont
from matplotlib import get_data_path

from medad_core.errors import UsageError
from medad_core.media import visible

Font = Literal["dejavu", "nanum"]
KOREAN_PACKAGE = "koreanize-matplotlib"


def files_of(font: Font) -> tuple[Path, Path]:
    """The files of a font, regular and bold. Raises UsageError where its package is not installed."""
    if font == "dejavu":
        folder = Path(get_data_path()) / "fonts" / "ttf"
        return folder / "DejaVuSans.ttf", folder / "DejaVuSans-Bold.ttf"
    try:
        package = distribution(KOREAN_PACKAGE)
    except PackageNotFoundError:
        raise UsageError(f"reports in Korean need the package {KOREAN_PACKAGE}; run `make setup`") from None
    names = ("NanumGothic.ttf", "NanumGothicBold.ttf")
    regular, bold = (Path(str(package.locate_file(f"koreanize_matplotlib/fonts/{name}"))) for name in names)
    return regular, bold


@cache
def characters(font: Font) -> frozenset[int]:
    """The code points that a font has in both weights."""
    regular, bold = (frozenset(TTFont(path, lazy=True).getBestCmap()) for path in files_of(font))
    return regular & bold


def fonts_for(text: str, language: str) -> tuple[Font, ...]:
    """The fonts that a text needs, that of its language first."""
    needed = {ord(character) for character in text}
    if language == "ko":
        return ("nanum",) if needed <= characters("nanum") else ("nanum", "dejavu")
    return ("dejavu",) if needed <= characters("dejavu") else ("dejavu", "nanum")


def printable(text: str, fonts: tuple[Font, ...]) -> str:
    """`text` with nothing unseen, and with code points in place of characters that none of the fonts has."""
    known = frozenset().union(*map(characters, fonts))
    return "".join(
        character if ord(character) in known or character == "\n" else f"U+{ord(character):04X}"
        for character in visible(text)
    )

"""What the encoder sees of a slice: its neighbours, its window, and how many pixels they are resized to.

One decision: the decoder is trained for one view, says which in its file, and gets no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

CONTEXT_MM = "context_mm"
WINDOW_MM = "window_mm"
PIXELS = "image_pixels"
USUAL_PIXELS = 224
SMALLEST_WINDOW_MM = 32.0
# As in `train`; an encoder of 2,000 pixels has 20,000 patches.
_LIMITS = {CONTEXT_MM: (0.0, 30.0), WINDOW_MM: (0.0, 400.0), PIXELS: (32, 2048)}


@dataclass(frozen=True)
class View:
    """`context_mm` is the distance of the neighbours, 0 for none; `window_mm` the width of the window, 0 for none.

    `image_pixels` is the side of the picture that goes into the encoder.
    """

    context_mm: float = 0.0
    window_mm: float = 0.0
    image_pixels: int = USUAL_PIXELS

    @classmethod
    def read(cls, texts: Mapping[str, str]) -> Self:
        """The view that a file's metadata says. Raises ValueError naming the field that has no such meaning."""
        return cls(
            **{field.name: _number(field.name, texts[field.name]) for field in fields(cls) if field.name in texts}
        )

    @property
    def facts(self) -> dict[str, str]:
        """What is other than usual, as `read` reads it."""
        return {
            field.name: str(value) for field in fields(self) if (value := getattr(self, field.name)) != field.default
        }

    @property
    def window_pixels(self) -> int:
        """The side of a window in pixels of 1 mm; 0 for none."""
        return round(self.window_mm)


ALONE = View()  # the whole of a slice, without its neighbours


def _number(name: str, text: str) -> float | int:
    low, high = _LIMITS[name]
    try:
        number = int(text) if name == PIXELS else float(text)
    except ValueError as error:
        raise ValueError(f"its {name} is {text!r}, and no number") from error
    if not low <= number <= high or (name == WINDOW_MM and 0 < number < SMALLEST_WINDOW_MM):
        raise ValueError(f"its {name} is {text}, and not what `medad train` takes, at most {high:g}")
    return number

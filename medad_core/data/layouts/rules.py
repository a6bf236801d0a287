"""A layout as it is written in YAML, and how it is checked.

A layout has `groups`, which are regular expressions that may contain other groups as `{name}`, and `paths`. A path is
literal text with groups in braces, compared with the end of a file's path without its `.nii` or `.nii.gz`, whatever the
case of its letters. A group that occurs again must have the same text. `{kind}` stands for one of the words in `kinds`
and gives the role; `{channel}` stands for a number that the layout's `dataset.json` explains; `{any}` is any text
within one name. `case_id`, `patient` and `visit` are templates of groups.

Every layout has examples, and a test checks each of them.
"""

from __future__ import annotations

from functools import cache, cached_property
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from medad_core.data.names import MASK, MODALITIES
from medad_core.errors import UsageError

PASSED_OVER = "passed over"
CHANNEL = "channel"  # one modality a file, by number
CHANNELS = "channels"  # all modalities in a 4-D file
KIND = "kind"  # the word in the name says which
ROLES = (*MODALITIES, MASK, PASSED_OVER)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PathRule(_Part):
    """A path of a layout, and what the files there are.

    `role` is "kind" where the word in the name says it, a modality, "mask", "channel", "channels" or "passed over". A
    file that is passed over has a `reason`. A path `owns` its folder if the folder is one case's. A `preferred` file is
    used where another path gives the same role too; without it, two candidates are refused.
    """

    path: str
    role: Literal["kind", "flair", "t1", "t1ce", "t2", "mask", "channel", "channels", "passed over"] = "kind"
    reason: str = ""
    owns: bool = False
    preferred: bool = False

    @model_validator(mode="after")
    def _explained(self) -> Self:
        if (self.role == PASSED_OVER) != bool(self.reason):
            raise ValueError(f"{self.path}: a path has a reason if and only if its files are passed over")
        return self


class Example(_Part):
    """A file of the layout, and what it must be taken for; `case_id` is None where it is passed over."""

    path: str
    role: str
    case_id: str | None = None
    patient: str | None = None
    visit: str | None = None


class Layout(_Part):
    """One layout.

    `needs` is a text in lower case that every path of it contains; it saves comparisons. `tumour_labels` are the values
    of a mask that mean tumour; None means every value above 0.
    """

    layout: str
    title: str
    source: str
    needs: str = ""
    groups: dict[str, str] = {}
    kinds: dict[str, list[str]] = {}
    case_id: str = "{case}"
    patient: str = ""
    visit: str = ""
    paths: list[PathRule] = Field(min_length=1)
    tumour_labels: list[int] | None = None
    examples: list[Example] = Field(min_length=1)

    @property
    def is_nameless(self) -> bool:
        """Whether it takes any name for a case, so that another layout may know whose it is."""
        return not self.patient

    @cached_property
    def modality_of(self) -> dict[str, str]:
        """The role that a word in lower case stands for."""
        return {word.lower(): role for role, words in self.kinds.items() for word in words}


@cache
def load_layouts() -> tuple[Layout, ...]:
    """All layouts, in the order in which they are tried. Raises UsageError for a file that is no layout."""
    return tuple(_load(path) for path in sorted(Path(__file__).parent.glob("*.yaml")))


def _load(path: Path) -> Layout:
    try:
        return Layout.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path.name}: no valid layout: {error}") from error

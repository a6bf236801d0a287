"""What a file name says: whose volume it is, and which modality or mask.

One decision: only the words at the end of a name (`X_flair`, `X-t2f`) or at its start (`Flair_subtrMeanDivStd`,
`OTMultiClass`) count, after the naming of BraTS 2013 to 2024. Anything else is unknown, and never guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MASK = "mask"
MODALITIES = ("flair", "t1", "t1ce", "t2")

_WORDS = {
    "flair": ("flair", "t2f", "t2flair"),
    "t1": ("t1", "t1n", "t1w"),
    "t1ce": ("t1ce", "t1c", "t1gd"),
    "t2": ("t2", "t2w"),
    MASK: ("seg", "segm", "mask", "tumor_segmentation"),
}
_KIND_OF = {word: kind for kind, words in _WORDS.items() for word in words}
_ALTERNATIVES = "|".join(sorted(_KIND_OF, key=len, reverse=True))
_AT_END = re.compile(rf"^(?P<case>.+?)[_-](?P<word>{_ALTERNATIVES})\Z", re.IGNORECASE | re.DOTALL)
_AT_START = re.compile(rf"^(?P<word>{_ALTERNATIVES}|otmulticlass)(?:[_.-].*)?\Z", re.IGNORECASE | re.DOTALL)
_EXTENSION = re.compile(r"\.nii(\.gz)?\Z", re.IGNORECASE)
# BraTS 2023 and later number a patient's visits: BraTS-GLI-00027-000, BraTS-GLI-00027-001.
_VISIT = re.compile(r"^(?P<patient>BraTS-[A-Za-z]+-\d+)-\d{3}$")


@dataclass(frozen=True)
class ParsedName:
    """`case_id` is None where the folder names the case; `kind` is a modality, "mask", or None where it is unknown."""

    case_id: str | None
    kind: str | None


def is_nifti(name: str) -> bool:
    """True for `.nii` and `.nii.gz` in any case; hidden files (macOS writes `._X.nii.gz`) are none."""
    return not name.startswith(".") and _EXTENSION.search(name) is not None


def stem(name: str) -> str:
    """The file name without `.nii` or `.nii.gz`."""
    return _EXTENSION.sub("", name)


def parse(name: str) -> ParsedName:
    """Read the case and the kind out of a NIfTI file's name."""
    base = stem(name)
    if at_end := _AT_END.match(base):
        return ParsedName(at_end["case"], _KIND_OF[at_end["word"].lower()])
    if at_start := _AT_START.match(base):
        return ParsedName(None, _KIND_OF.get(at_start["word"].lower(), MASK))
    return ParsedName(None, None)


def printable(name: str) -> str:
    """The name in valid UTF-8: names on disk are bytes, and those that are no UTF-8 could be written to no table."""
    return name.encode("utf-8", "replace").decode()


def patient_of(case_id: str) -> str:
    """The patient behind a case: visits of one patient (ids of BraTS 2023 and later) share it, others are their own."""
    visit = _VISIT.match(case_id)
    return visit["patient"] if visit else case_id

"""What a file name says without any layout: whether it is a volume, and who the patient of an old case id is."""

from __future__ import annotations

import re
import unicodedata

MASK = "mask"
MODALITIES = ("flair", "t1", "t1ce", "t2")

_EXTENSION = re.compile(r"\.nii(\.gz)?\Z", re.IGNORECASE)
# Volumes that other programs write. An .hdr belongs to its .img and is not named on its own.
_OTHER_FORMAT = re.compile(r"\.(img(\.gz)?|nii\.(bz2|xz|zip|zst)|mg[hz]|mh[ad]|nrrd|nhdr|mnc|par|v)\Z", re.IGNORECASE)
# BraTS 2023 and later number a patient's visits: BraTS-GLI-00027-000, BraTS-GLI-00027-001.
_VISIT = re.compile(r"^(?P<patient>BraTS-[A-Za-z]+-\d+)-\d{3}$")


def is_nifti(name: str) -> bool:
    """True for `.nii` and `.nii.gz` in any case; hidden files (macOS writes `._X.nii.gz`) are none."""
    return not name.startswith(".") and _EXTENSION.search(name) is not None


def is_other_format(name: str) -> bool:
    """True for a file that holds a volume in a format that medad does not read."""
    return not name.startswith(".") and _OTHER_FORMAT.search(name) is not None


def stem(name: str) -> str:
    """The file name without the extension of a volume."""
    return _OTHER_FORMAT.sub("", _EXTENSION.sub("", name))


def printable(name: str) -> str:
    r"""The name in valid UTF-8: names on disk are bytes, and those that are no UTF-8 could be written to no table.

    Bytes that are none are shown as `\xe9`.
    """
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character, of a JSON file: no name on disk has it
        return name.encode("utf-8", "backslashreplace").decode()


def canonical(name: str) -> str:
    """The name in Unicode's composed form: macOS and Linux write the same é in two ways."""
    return unicodedata.normalize("NFC", name)


def patient_of(case_id: str) -> str:
    """The patient of a case whose layout is not known, as in runs of earlier versions.

    Visits of one patient (ids of BraTS 2023 and later) share it; every other case is a patient of its own.
    """
    visit = _VISIT.match(case_id)
    return visit["patient"] if visit else case_id

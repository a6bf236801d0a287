"""What a format is: dataset-wide files once, then the files of one case after another.

One decision: a format gets arrays on the grid of the case's own file and decides only how they are written. It reads no
stage, so all formats show the same voxels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

from medad_core.export.case_map import CaseMap
from medad_core.media import file_name

Format = Literal["nifti", "bids", "dicom-seg", "niivue"]


class Writer(Protocol):
    """One format, with the folder that it writes to. Files that exist are replaced."""

    needs_volume: bool  # whether a case cannot be written without the file that its pictures were made of

    def begin(self) -> None:
        """Write what is of the dataset and not of a case. Raises StoreError."""

    def write(self, case: CaseMap) -> None:
        """Write the files of one case. Raises CaseError if this case cannot be written, StoreError if no case can."""

    def files(self, case_id: str) -> tuple[Path, ...]:
        """Where the files of a case lie."""


def file_of(folder: Path, case_id: str, end: str) -> Path:
    """The file of a case with `end`, such as `_map.nii.gz`, in `folder`."""
    return folder / f"{file_name(case_id)}{end}"

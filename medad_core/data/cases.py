"""What discovery finds: cases with their volumes, files that are passed over, and what cannot be used and why.

One decision: a case refers to files and holds no voxels, so ten thousand of them are a short list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medad_core.data.names import patient_of, printable

# How data.first_slice, data.last_slice and the scaling's reference are meant: see `Case.levels`.
Levels = Literal["index", "brain"]
# The layout of a case in a run that an earlier version began. It is read as that version read it, so that a run never
# holds rows of two kinds.
EARLIER = "earlier version"


@dataclass(frozen=True, slots=True)
class VolumeRef:
    """A 3-D volume in a file; `channel` picks one of a 4-D file (None: the file holds one volume)."""

    path: str
    channel: int | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One examination of one patient.

    `volumes` maps "flair", "t1", "t1ce", "t2" to files; `mask` is None where unlabelled. `layout` names the rule that
    says so. `tumour_labels` are the values of the mask that mean tumour, None where all above 0 do. `levels` says how
    a range of slices is meant: "index" takes the volume's own axial slices by number, as on SRI24, "brain" takes those
    with the same anatomy by the brain's extent (`data.levels`). `pathology` and `date` (ISO) are what a table says, ""
    for nothing.
    """

    case_id: str
    volumes: dict[str, VolumeRef]
    mask: VolumeRef | None
    patient: str = ""
    visit: str = ""
    layout: str = ""
    tumour_labels: tuple[int, ...] | None = None
    levels: Levels = "index"
    pathology: str = ""
    date: str = ""

    def __post_init__(self) -> None:
        """A case that nobody gave a patient has the one that its id says: no two cases share a missing patient."""
        if not self.patient:
            object.__setattr__(self, "patient", patient_of(self.case_id))


@dataclass(frozen=True, slots=True)
class Rejection:
    """A case that cannot be used, with a reason a user can act on; `files` are its files, by role.

    Name and reason are valid UTF-8, whatever the names of files are, because they are written to JSON and tables.
    """

    case_id: str
    reason: str
    files: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Make name and reason printable."""
        object.__setattr__(self, "case_id", printable(self.case_id))
        object.__setattr__(self, "reason", printable(self.reason))


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A file or folder that is not used, and why. `is_explained` is False where no layout says what it is."""

    path: str
    reason: str
    is_explained: bool

    def __post_init__(self) -> None:
        """Make the reason printable, as that of a rejection."""
        object.__setattr__(self, "reason", printable(self.reason))


@dataclass(frozen=True, slots=True)
class Discovery:
    """All cases and rejections under a folder, each sorted by case_id, and the files that are passed over, by path."""

    cases: tuple[Case, ...]
    rejected: tuple[Rejection, ...]
    passed_over: tuple[PassedOver, ...] = ()

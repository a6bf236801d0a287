"""What discovery finds: cases with their volumes, and what cannot be used and why.

One decision: a case refers to files and holds no voxels, so ten thousand of them are a short list.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal

# How data.first_slice, data.last_slice and the scaling's reference are meant: see `Case.levels`.
Levels = Literal["index", "brain"]


@dataclass(frozen=True)
class VolumeRef:
    """A 3-D volume in a file; `channel` picks one of a 4-D file (None: the file holds one volume)."""

    path: str
    channel: int | None = None


@dataclass(frozen=True)
class Case:
    """One examination of one patient.

    `volumes` maps "flair", "t1", "t1ce", "t2" to files; `mask` is None where unlabelled. `levels` says how a range of
    slices is meant: "index" takes the volume's own axial slices by number, as on SRI24, "brain" takes those with the
    same anatomy by the brain's extent (`data.levels`).
    """

    case_id: str
    volumes: dict[str, VolumeRef]
    mask: VolumeRef | None
    levels: Levels = "index"


@dataclass(frozen=True)
class Rejection:
    """A case that cannot be used, with a reason a user can act on."""

    case_id: str
    reason: str


@dataclass(frozen=True)
class Discovery:
    """All cases and rejections under a folder, each sorted by case_id."""

    cases: tuple[Case, ...]
    rejected: tuple[Rejection, ...]


@dataclass
class DraftCase:
    """The files of `folder` that one case id claims, by kind (a modality or "mask"); not yet judged."""

    case_id: str
    folder: str
    files: dict[str, list[VolumeRef]] = field(default_factory=lambda: defaultdict(list))

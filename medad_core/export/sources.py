"""Where the pictures of each case lie, and whether the file that they were made of is still the same.

One decision: a map lies on the file that was read. Of a file that is gone, the place is on record, so its map is still
right; on a file with other content it could lie anywhere, so it is not written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medad_core.data.place import Place
from medad_core.data.reads import FileRead
from medad_core.run.cohort import Cohort
from medad_core.run.run import Run
from medad_core.run.staleness import same_content

State = Literal["same", "changed", "missing"]


@dataclass(frozen=True)
class Source:
    """Where the pictures of a case lie, and what was read of its volume."""

    place: Place
    volume: FileRead | None

    def state(self, root: str) -> State:
        """Compare the file below `root` with what was read. Raises StoreError if it cannot be read for now."""
        if self.volume is None:
            return "missing"
        same = same_content(root, self.volume)
        return "missing" if same is None else "same" if same else "changed"


def sources_of(run: Run) -> dict[str, Source]:
    """The source of each case, as far as it was noted. Raises StoreError."""
    plan = run.stage("slices").plan()
    volumes = _volumes(run.cohort)
    return {
        case_id: Source(place, _find(part.cases.get(case_id, ()), volumes.get(case_id)))
        for _, part in run.inputs.read_all([part.number for part in plan.parts], plan.sha256)
        for case_id, place in part.places.items()
    }


def _volumes(cohort: Cohort) -> dict[str, str]:
    """The path of each case's volume, relative to the root."""
    return {member.case_id: member.volume.path for member in cohort.members if member.volume is not None}


def _find(files: Sequence[FileRead], path: str | None) -> FileRead | None:
    return next((file for file in files if file.path == path), None)

"""The map of a case on the grid of the file that its pictures were made of.

One decision: the mask is the map at the threshold, voxel by voxel of the file, and only where pictures were screened.
So `mask == (map >= threshold)` holds in every format, on grids that were brought to 1 mm as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medad_core.data.place import Place
from medad_core.export.space import FloatArray, to_file
from medad_core.run.cohort import Member
from medad_core.run.run import Run
from medad_core.stages.rows import rendered_maps

BoolArray = npt.NDArray[np.bool_]
RESEARCH = "For research. Not a medical device."


@dataclass(frozen=True)
class CaseMap:
    """Arrays of the file's shape (X, Y, Z): `values` float32 from 0 to 1, and which voxels were `screened`, bool.

    Where nothing was screened, `values` are 0 and mean nothing. `slices` are the first and the last one that was
    screened. `volume` is the file, which may be gone.
    """

    member: Member
    place: Place
    values: FloatArray
    screened: BoolArray
    slices: tuple[int, int]
    threshold: float
    volume: Path

    @property
    def case_id(self) -> str:
        """The case."""
        return self.member.case_id

    @property
    def mask(self) -> npt.NDArray[np.uint8]:
        """1 where the map is at the threshold or above, 0 elsewhere; (X, Y, Z)."""
        return (self.screened & (self.values >= self.threshold)).astype(np.uint8)

    @property
    def remark(self) -> str:
        """What a file should say of its content, in a few words of ASCII."""
        phantom = "generated phantom, " if self.member.phantom else ""
        return f"{phantom}slices {self.slices[0]} to {self.slices[1]} screened"


def read_case_map(run: Run, member: Member, place: Place, threshold: float) -> CaseMap:
    """The map of a case that the run has maps of. Raises StoreError."""
    slices = run.stage("slices").read_case(member.case_id)
    maps = run.stage("maps").read_case(member.case_id)
    pictures = rendered_maps(maps, slices["height"][0].as_py(), slices["width"][0].as_py())
    first = slices["slice_index"][0].as_py()
    assert member.volume is not None, f"{member.case_id} has maps and no volume"
    return CaseMap(
        member=member,
        place=place,
        values=to_file(pictures, first, place),
        screened=to_file(np.ones_like(pictures), first, place) > 0,
        slices=(first, first + len(pictures) - 1),
        threshold=threshold,
        volume=Path(run.cohort.root) / member.volume.path,
    )


def made_by() -> str:
    """The program and its version, such as `medad 0.1.0`."""
    return f"medad {version('medad')}"

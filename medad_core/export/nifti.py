"""Map and mask as NIfTI: `CASE_map.nii.gz` (float32) and `CASE_mask.nii.gz` (uint8).

One decision: a file has the volume's own grid and affine, so that it lies on the volume in any viewer. Its header says
which slices were screened; voxels beyond them are 0 and mean nothing.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from medad_core.data.place import Place
from medad_core.export.case_map import CaseMap
from medad_core.export.protocol import file_of
from medad_core.store import write_bytes


@dataclass(frozen=True)
class NiftiFiles:
    """Two files a case in the folder `out`."""

    out: Path
    needs_volume: bool = False

    def begin(self) -> None:
        """Nothing is of the dataset."""

    def write(self, case: CaseMap) -> None:
        """Write map and mask. Raises StoreError."""
        values, mask = self.files(case.case_id)
        write_map(values, case)
        write_mask(mask, case)

    def files(self, case_id: str) -> tuple[Path, ...]:
        """See `Writer.files`: the map, then the mask."""
        return tuple(file_of(self.out, case_id, end) for end in ("_map.nii.gz", "_mask.nii.gz"))


def write_map(path: Path, case: CaseMap) -> None:
    """Write the map as float32, complete or not at all. Raises StoreError."""
    write_bytes(str(path), volume_bytes(case.values, case.place, f"medad map, {case.remark}"))


def write_mask(path: Path, case: CaseMap) -> None:
    """Write the mask as uint8, complete or not at all. Raises StoreError."""
    write_bytes(str(path), volume_bytes(case.mask, case.place, f"medad map >= {case.threshold:g}, {case.remark}"))


def volume_bytes(array: np.ndarray, place: Place, description: str, shown: tuple[float, float] = (0.0, 0.0)) -> bytes:
    """A compressed NIfTI file of an array (X, Y, Z) on the grid of a file; the same array gives the same bytes.

    `shown` are the values that a viewer is asked to draw darkest and brightest; where they are equal, it chooses.
    """
    image = nib.Nifti1Image(array, place.stored)
    image.header.set_xyzt_units("mm")
    image.header["cal_min"], image.header["cal_max"] = shown
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    return gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)

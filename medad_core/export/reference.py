"""The DICOM series of a case, and the map on the grid of its slices.

One decision: a series belongs to a case because it lies in `FOLDER/CASE` and has the grid of the case's volume; nothing
is concluded from names or numbers of patients. The same grid means the same voxels in any order and with any of the
outer ones left out: then every value lands on one voxel and is not touched. On any other grid values would have to be
interpolated, and are refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from highdicom import CoordinateSystemNames, Volume, VolumeGeometry
from highdicom.spatial import get_series_volume_positions
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.misc import is_dicom

from medad_core.errors import CaseError, first_line
from medad_core.media import file_name

_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_NEAR = 0.05  # of a voxel over the whole grid: NIfTI has 32 bits, and DICOM few decimals
_ROUGHLY = 0.05  # what highdicom may take for the same lengths and directions, before corners are compared
_OF_IMAGE = (
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
)


@dataclass(frozen=True)
class Series:
    """Slices of a series without their pixels, in the order of the first axis of their grid (slice, row, column)."""

    frames: tuple[Dataset, ...]
    grid: VolumeGeometry

    def place(self, array: np.ndarray, affine: npt.NDArray[np.float64]) -> np.ndarray:
        """An array (X, Y, Z) with an `affine` to RAS+ mm, on the slices (N, rows, columns); 0 where it does not reach.

        Raises ValueError, which says how the grids differ, where a voxel would not land on one of the series.
        """
        try:
            volume = Volume(array, _TO_LPS @ affine, CoordinateSystemNames.PATIENT)
        except ValueError as error:
            raise ValueError("the axes of the volume are not at right angles, as those of DICOM images are") from error
        if not np.isclose(volume.voxel_volume, self.grid.voxel_volume, rtol=_ROUGHLY):
            raise ValueError(self._differs(volume))
        try:
            matched = volume.match_geometry(self.grid, tol=_ROUGHLY)
        except RuntimeError as error:
            raise ValueError(self._differs(volume)) from error
        corners = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in self.grid.spatial_shape))])
        apart = np.linalg.norm(((matched.affine - self.grid.affine) @ corners.T)[:3], axis=0).max()
        if apart > _NEAR * min(self.grid.spacing):
            raise ValueError(f"{self._differs(volume)}, corners {apart:.2g} mm apart")
        return matched.array

    def _differs(self, volume: Volume) -> str:
        return f"its grid is {_words(self.grid)}, that of the volume {_words(volume)}"


def _words(grid: Volume | VolumeGeometry) -> str:
    """Such as `155 × 240 × 240 voxels of 1 × 1 × 1 mm from (-0, -239, 0)`, whatever the order of the axes."""
    sizes = " × ".join(str(size) for size in grid.spatial_shape)
    spacing = " × ".join(f"{edge:.4g}" for edge in grid.spacing)
    position = ", ".join(f"{at:.4g}" for at in grid.position)
    return f"{sizes} voxels of {spacing} mm from ({position})"


def find_series(case_id: str, folder: Path, screened: np.ndarray, affine: npt.NDArray[np.float64]) -> Series:
    """The one series below `folder/CASE` with the grid of `screened` (X, Y, Z), which is where values are.

    Raises CaseError where there is none, or more than one.
    """
    name = file_name(case_id)
    own = folder / name
    if name in {".", ".."} or not own.is_dir():
        raise CaseError(case_id, f"no DICOM series: {own} is no folder; put the slices of its series there")
    fitting: list[Series] = []
    reasons: list[str] = []
    for images in _by_series(_images(own)):
        try:
            series = _series_of(images)
            placed = series.place(screened, affine)
            if np.count_nonzero(placed) != np.count_nonzero(screened):
                raise ValueError("it does not reach over all voxels that were screened")
        except (TypeError, ValueError) as error:  # an attribute of other length than DICOM has
            reasons.append(f"series {images[0].SeriesInstanceUID}: {first_line(error)}")
        else:
            fitting.append(series)
    if len(fitting) > 1:
        uids = " and ".join(str(series.frames[0].SeriesInstanceUID) for series in fitting)
        raise CaseError(case_id, f"{len(fitting)} series of {own} have its grid ({uids}); leave one of them there")
    if not fitting:
        why = "; ".join(reasons) if reasons else "no single-frame DICOM images with a position lie there"
        raise CaseError(case_id, f"no DICOM series of {own} has its grid: {why}")
    return fitting[0]


def _images(folder: Path) -> Iterator[Dataset]:
    """The single-frame images with a place in the patient among the files below a folder, without their pixels."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            image = pydicom.dcmread(path, stop_before_pixels=True) if is_dicom(path) else Dataset()
        except (OSError, InvalidDicomError):
            continue
        if all(image.get(name) not in (None, "") for name in _OF_IMAGE):
            yield image


def _by_series(images: Iterator[Dataset]) -> list[list[Dataset]]:
    series: dict[str, list[Dataset]] = defaultdict(list)
    for image in images:
        series[str(image.SeriesInstanceUID)].append(image)
    return list(series.values())


def _series_of(images: Sequence[Dataset]) -> Series:
    """The images of one series in their order. Raises ValueError where they are not the slices of one grid."""
    alike = {(image.Rows, image.Columns, str(image.PixelSpacing), image.FrameOfReferenceUID) for image in images}
    spacing, order = get_series_volume_positions(images)
    if spacing is None or order is None or len(alike) > 1:
        raise ValueError(f"its {len(images)} images are not the evenly spaced slices of one volume")
    frames = tuple(image for _, image in sorted(zip(order, images, strict=True), key=lambda pair: pair[0]))
    first = frames[0]
    grid = VolumeGeometry.from_attributes(
        image_position=first.ImagePositionPatient,
        image_orientation=first.ImageOrientationPatient,
        rows=first.Rows,
        columns=first.Columns,
        pixel_spacing=first.PixelSpacing,
        spacing_between_slices=spacing,
        number_of_frames=len(frames),
        coordinate_system=CoordinateSystemNames.PATIENT,
        frame_of_reference_uid=first.FrameOfReferenceUID,
    )
    return Series(frames, grid)

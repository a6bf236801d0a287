"""A NiiVue document a case: volume, map and mask in one file that the viewer NiiVue opens, offline too.

One decision: a document holds the volume itself and not a link, so it can be sent and kept. Of the volume's file it has
voxels and affine only, since texts in a header may say who somebody is.
"""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medad_core.errors import CaseError, first_line
from medad_core.export.case_map import RESEARCH, CaseMap, made_by
from medad_core.export.nifti import volume_bytes
from medad_core.export.protocol import file_of
from medad_core.media import visible
from medad_core.store import write_text

_BRAIN = (1, 99)  # percentiles of what is not the background: the greys of the picture
_FAINTEST = 0.1  # of the map: below it the picture is seen alone
_GZIP = b"\x1f\x8b"
_NIFTI = 1  # `imageType` of NiiVue
_MULTIPLANAR = 3  # `sliceType` of NiiVue


@dataclass(frozen=True)
class NiivueDocuments:
    """One `CASE.nvd` a case in the folder `out`."""

    out: Path
    needs_volume: bool = True

    def begin(self) -> None:
        """Nothing is of the dataset."""

    def write(self, case: CaseMap) -> None:
        """Write the document. Raises CaseError where the volume cannot be read, and StoreError."""
        write_text(str(*self.files(case.case_id)), json.dumps(document_of(case, read_volume(case))))

    def files(self, case_id: str) -> tuple[Path, ...]:
        """See `Writer.files`."""
        return (file_of(self.out, case_id, ".nvd"),)


def read_volume(case: CaseMap) -> np.ndarray:
    """The volume that the pictures were made of (X, Y, Z): int16 where this is exact, else float32.

    Raises CaseError where it cannot be read.
    """
    channel = case.member.volume.channel if case.member.volume is not None else None
    try:
        stored = np.asanyarray(_image(case.volume.read_bytes()).dataobj)
    except (OSError, EOFError, ValueError, zlib.error, nib.spatialimages.HeaderDataError) as error:
        raise CaseError(case.case_id, f"{case.volume} cannot be read ({first_line(error)}); bring it back") from error
    volume = stored.reshape((*case.place.shape, -1), order="F")[..., channel or 0]
    whole = np.issubdtype(volume.dtype, np.integer) and np.abs(volume.astype(np.int64)).max() <= np.iinfo(np.int16).max
    return volume.astype(np.int16 if whole else np.float32)


def _image(content: bytes) -> nib.Nifti1Image:
    """The image of a file's bytes, whatever its name says of them, as it was read when it was screened."""
    if content[:2] == _GZIP:
        content = gzip.decompress(content)
    of_second_version = 540 in (int.from_bytes(content[:4], order) for order in ("little", "big"))
    return (nib.Nifti2Image if of_second_version else nib.Nifti1Image).from_bytes(content)


def document_of(case: CaseMap, volume: np.ndarray) -> dict[str, Any]:
    """The document of a case with its `volume` (X, Y, Z), as NiiVue's `NVDocument.loadFromJSON` takes it."""
    layers = (
        _layer("volume", volume, "gray", _greys(volume), 1.0, case),
        _layer("map", case.values, "plasma", (_FAINTEST, 1.0), 0.5, case),
        _layer("mask", case.mask, "green", (0.0, 1.0), 0.15, case),
    )
    return {
        "title": visible(f"{case.case_id}: {case.remark}, {made_by()}. {RESEARCH}"),
        "customData": json.dumps(
            {"case": case.case_id, "generatedPhantom": case.member.phantom, "screenedSlices": case.slices}
            | {"threshold": case.threshold, "madeBy": made_by(), "notice": RESEARCH}
        ),
        "imageOptionsArray": [options for options, _ in layers],
        "encodedImageBlobs": [blob for _, blob in layers],
        "opts": {"sliceType": _MULTIPLANAR, "isRadiologicalConvention": True, "isColorbar": True},
        "sceneData": {},
        "labels": [],
        "meshOptionsArray": [],
        "meshesString": "[]",
        "connectomes": [],
        "encodedDrawingBlob": "",
        "previewImageDataURL": "",
    }


def _greys(volume: np.ndarray) -> tuple[float, float]:
    """The values that are drawn black and white."""
    brain = volume[volume != volume.flat[0]]  # the first voxel is a corner, which is background
    if not brain.size:
        return 0.0, 1.0
    low, high = np.percentile(brain, _BRAIN).tolist()
    return low, high


def _layer(
    name: str, array: np.ndarray, colours: str, shown: tuple[float, float], opacity: float, case: CaseMap
) -> tuple[dict[str, Any], str]:
    """How NiiVue shows an array (X, Y, Z), and the array as a NIfTI file in base 64."""
    options = {
        "name": f"{name}.nii.gz",
        "colormap": colours,
        "colorMap": colours,  # of `colormap`, NiiVue 0.68 makes a list of letters
        "opacity": opacity,
        "cal_min": shown[0],
        "cal_max": shown[1],
        "trustCalMinMax": True,  # those of the file's header: NiiVue computes others where it is not asked to trust
        "imageType": _NIFTI,
        "frame4D": 0,
        "colorbarVisible": name == "map",
    }
    content = volume_bytes(array, case.place, f"medad {name}, {case.remark}", shown)
    return options, base64.b64encode(content).decode()

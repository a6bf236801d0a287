"""Map and mask of a case as DICOM beside its own series: a Parametric Map and a Segmentation.

One decision: the frames are those slices of the series that were screened, empty ones too. So a viewer sees where medad
looked and saw nothing, and a frame that is missing was not looked at. All voxels at the threshold are one segment, as
in the masks of the other formats: the list of lesions leaves the smallest out.

A file carries the patient and study of the series, as DICOM demands. So runs with pseudonyms are refused, which would
join pseudonym and patient, and so are generated phantoms, which belong to no patient.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from highdicom import UID, AlgorithmIdentificationSequence, VOILUTTransformation
from highdicom.pm import ParametricMap, RealWorldValueMapping
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from pydicom import Dataset
from pydicom.sr.codedict import codes

from medad_core.config import DataSettings
from medad_core.errors import CaseError, UsageError, first_line
from medad_core.export.case_map import RESEARCH, CaseMap
from medad_core.export.protocol import file_of
from medad_core.export.reference import find_series
from medad_core.store.files import explained, new_file

_SERIES_NUMBERS = {"map": 9001, "seg": 9002}  # far from those of scanners


@dataclass(frozen=True)
class DicomObjects:
    """Two files a case in the folder `out`; the series of a case lies in `reference/CASE`."""

    out: Path
    reference: Path
    needs_volume: bool = False

    @classmethod
    def of(cls, out: Path, reference: Path, settings: DataSettings) -> DicomObjects:
        """Raises UsageError for a run with pseudonyms, and where there is no folder of series."""
        if settings.pseudonyms is not None:
            raise UsageError(
                "the run has pseudonyms (data.pseudonyms), and DICOM files carry the patient of their series, which "
                "would tell whose they are; use another --format"
            )
        if not reference.is_dir():
            raise UsageError(f"--reference {reference}: no such folder; it holds the DICOM series of each case")
        return cls(out, reference)

    def begin(self) -> None:
        """Nothing is of the dataset."""

    def write(self, case: CaseMap) -> None:
        """Write both files. Raises CaseError where no series, or more than one, fits the case, and StoreError."""
        if case.member.phantom:
            raise CaseError(case.case_id, "a generated phantom has no patient to file it with; use another --format")
        affine = case.place.stored
        series = find_series(case.case_id, self.reference, case.screened.astype(np.uint8), affine)
        looked_at = np.flatnonzero(series.place(case.screened.astype(np.uint8), affine).any(axis=(1, 2)))
        frames = [series.frames[number] for number in looked_at]
        try:
            objects = (
                parametric_map(frames, series.place(case.values, affine)[looked_at], case),
                segmentation(frames, series.place(case.mask, affine)[looked_at], case),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # what highdicom says of wrong attributes
            raise CaseError(
                case.case_id, f"its DICOM series cannot be referred to ({first_line(error)}); repair its attributes"
            ) from error
        for path, made in zip(map(str, self.files(case.case_id)), objects, strict=True):
            made.BodyPartExamined = "BRAIN"  # which is not one of a pair: DICOM asks for the side of those
            with new_file(path) as temporary, explained("write", path):
                made.save_as(temporary)

    def files(self, case_id: str) -> tuple[Path, ...]:
        """See `Writer.files`: the map, then the mask."""
        return tuple(file_of(self.out, case_id, end) for end in ("_map.dcm", "_seg.dcm"))


def parametric_map(frames: list[Dataset], values: np.ndarray, case: CaseMap) -> ParametricMap:
    """The map, float32 (N, rows, columns), on N slices of a series."""
    meaning = RealWorldValueMapping(
        lut_label="anomaly",
        lut_explanation="Anomaly map of medad, 0 to 1, not calibrated",
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, 1.0),
        slope=1.0,
        intercept=0.0,
        quantity_definition=codes.DCM.FractionalProbabilisticSegmentation,
    )
    return ParametricMap(
        source_images=frames,
        pixel_array=np.ascontiguousarray(values, np.float32),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[meaning],
        voi_lut_transformations=[VOILUTTransformation(window_center=0.5, window_width=1.0)],
        content_label="ANOMALY_MAP",
        **_common("map", "anomaly map", case),
    )


def segmentation(frames: list[Dataset], mask: np.ndarray, case: CaseMap) -> Segmentation:
    """The mask, uint8 (N, rows, columns), on N slices of a series, as one binary segment."""
    lesion = SegmentDescription(
        segment_number=1,
        segment_label="anomaly",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name="medad",
            version=version("medad"),
            family=codes.DCM.ArtificialIntelligence,
            parameters={"map_threshold": f"{case.threshold:g}"},
        ),
        anatomic_regions=[codes.SCT.Brain],
    )
    return Segmentation(
        source_images=frames,
        pixel_array=np.ascontiguousarray(mask),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[lesion],
        omit_empty_frames=False,
        content_label="ANOMALY_MASK",
        **_common("seg", f"map >= {case.threshold:g}", case),
    )


def _common(kind: str, what: str, case: CaseMap) -> dict[str, Any]:
    """What both objects say of themselves. Every export is new objects with identifiers of their own."""
    return {
        "series_instance_uid": UID(),
        "series_number": _SERIES_NUMBERS[kind],
        "sop_instance_uid": UID(),
        "instance_number": 1,
        "manufacturer": "medad",
        "manufacturer_model_name": "medad",
        "software_versions": version("medad"),
        "device_serial_number": "none",
        "content_description": RESEARCH,
        "series_description": f"medad {what}, {case.remark}",
    }

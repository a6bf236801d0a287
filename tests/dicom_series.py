"""DICOM series of MR images that are generated from a volume: real ones may not be shipped.

One decision: a series is a volume with its axes in any order and direction, whose last axis are the slices. So a test
chooses how a scanner would have stored the very voxels of a NIfTI file.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from highdicom import UID
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

PATIENT = "Doe^Jane"


def write_series(
    folder: Path,
    image: nib.Nifti1Image,
    axes: str = "LPS",
    order: np.random.Generator | None = None,
    crop: slice = slice(None),
) -> list[Path]:
    """Write the voxels of `image` as a series whose columns, rows and slices run to `axes`; returns the files.

    Files are named in the order of the slices, or by chance with `order`. `crop` are the slices that are written.
    """
    target = nib.orientations.axcodes2ornt(axes)
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), target))
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ turned.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    voxels = np.asarray(turned.dataobj).clip(0, 32767).astype(np.int16)
    study, series, frame_of_reference = UID(), UID(), UID()
    numbers = range(voxels.shape[2])[crop]
    names = list(numbers) if order is None else order.permutation(numbers).tolist()
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, name in zip(numbers, names, strict=True):
        one = _base()
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame_of_reference
        one.SOPInstanceUID = UID()
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        one.InstanceNumber = str(number + 1)
        one.ImagePositionPatient = _decimals(affine[:3, 3] + number * affine[:3, 2])
        one.ImageOrientationPatient = _decimals(np.r_[affine[:3, 0] / spacing[0], affine[:3, 1] / spacing[1]])
        one.PixelSpacing = _decimals([spacing[1], spacing[0]])
        one.SliceThickness = _decimals([spacing[2]])[0]
        one.Rows, one.Columns = voxels.shape[1], voxels.shape[0]
        one.PixelData = np.ascontiguousarray(voxels[:, :, number].T).tobytes()
        paths.append(folder / f"IM{name:04d}")
        one.save_as(paths[-1], enforce_file_format=True)
    return paths


def _decimals(values) -> list[str]:
    return [f"{value:.8f}"[:16] for value in values]


def _base() -> Dataset:
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = MRImageStorage
    one.PatientName, one.PatientID, one.PatientBirthDate, one.PatientSex = PATIENT, "4711", "19700101", "F"
    one.StudyDate, one.StudyTime, one.StudyID, one.AccessionNumber = "20240102", "030405", "1", "A1"
    one.ReferringPhysicianName = ""
    one.Modality, one.SeriesNumber, one.Manufacturer = "MR", "3", "generated for a test"
    one.ImageType = ["ORIGINAL", "PRIMARY", "M", "SE"]
    one.ScanningSequence, one.SequenceVariant, one.ScanOptions, one.MRAcquisitionType = "SE", "NONE", "", "3D"
    one.EchoTime, one.RepetitionTime, one.EchoTrainLength = "100", "9000", "1"
    one.PositionReferenceIndicator = ""
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
    return one

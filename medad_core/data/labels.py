"""Labels of a mask: whole numbers, 0 for background.

One decision: a label that went through floating point or a header's scale comes back a little off, such as 1.9999, and
is rounded. Anything further from a whole number is no label.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medad_core.data.nifti import NiftiFile
from medad_core.errors import CaseError

# nibabel stores labels 0 to 4 in 8 bits with an error of up to 0.008 when it rescales an edited mask.
_ROUNDING = 1e-2
_AT_ONCE = 1 << 24  # voxels, of which copies are made


def find_tumour(file: NiftiFile, stored: np.ndarray, tumour_labels: Sequence[int] | None) -> np.ndarray:
    """Tumour, bool of the shape of the `stored` values: the labels that mean tumour, or every label above 0.

    Raises CaseError for values that are further than 0.01 from a whole number, below 0, or not finite.
    """
    tumour = np.empty(stored.shape, bool)
    step = max(1, _AT_ONCE * len(stored) // stored.size)
    for start in range(0, len(stored), step):
        tumour[start : start + step] = _find_tumour(file, stored[start : start + step], tumour_labels)
    return tumour


def _find_tumour(file: NiftiFile, stored: np.ndarray, tumour_labels: Sequence[int] | None) -> np.ndarray:
    header = file.header
    if header.slope == 1 and header.inter == 0:
        values = stored
    else:
        values = stored.astype(np.float64) * header.slope + header.inter
    if values.dtype.kind == "u":
        return _tumour(values, tumour_labels)
    labels = values if values.dtype.kind == "i" else np.rint(values)
    # `not >=` is also true for NaN.
    if not labels.min() >= 0 or not _are_near(values, labels):
        raise CaseError(
            file.case_id,
            f"{file.name}: the mask has values that are no labels (negative, fractions or NaN); "
            "give whole numbers, 0 for background",
        )
    return _tumour(labels, tumour_labels)


def _tumour(labels: np.ndarray, tumour_labels: Sequence[int] | None) -> np.ndarray:
    return labels > 0 if tumour_labels is None else np.isin(labels, tumour_labels)


def _are_near(values: np.ndarray, labels: np.ndarray) -> bool:
    if labels is values:
        return True
    with np.errstate(invalid="ignore"):  # infinity is not near itself
        return bool(np.abs(values - labels).max() <= _ROUNDING)

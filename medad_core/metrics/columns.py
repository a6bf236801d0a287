"""The columns of `predictions` as plain arrays, one entry a slice.

One decision: null means null. Whether it arrives as None, NaN or pandas' NA, it becomes NaN in a number and False in
a flag here, so that no metric further on can take a missing label for a healthy one.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from medad_core.data.location import CELLS
from medad_core.data.names import patient_of
from medad_core.metrics.answers import Answers
from medad_core.metrics.arrays import FloatArray
from medad_core.metrics.location import cell_steps
from medad_core.metrics.units import Units


def slice_units(predictions: pd.DataFrame) -> Units:
    """One unit a row, all of one fold, from columns case_id, patient and label.

    Patients are numbered in order of appearance; visits of one patient share a number.
    """
    patient, names = pd.factorize(patients_of(predictions))
    return Units("image", patient, np.zeros(len(names), int), numbers(predictions["label"]))


def patients_of(predictions: pd.DataFrame) -> pd.Series[str]:
    """The patient of every row; in predictions of earlier versions, as the case id says."""
    by_case_id = predictions["case_id"].map(patient_of)
    return predictions["patient"].fillna(by_case_id) if "patient" in predictions else by_case_id


def answers_of(predictions: pd.DataFrame) -> Answers:
    """The answers, from columns answer, answer_parsed, verdict, location and location_true."""
    # An answer in two minds about its location is unparsed as a whole; reading its first word only would be a guess.
    parsed = predictions["answer_parsed"].fillna(False).astype(bool).to_numpy()
    verdict = predictions["verdict"]
    location = predictions["location"].where(predictions["location"].isin(CELLS), None)
    return Answers(
        answered=predictions["answer"].notna().to_numpy(),
        says_yes=parsed & (verdict == "yes").fillna(False).to_numpy(bool),
        says_no=parsed & (verdict == "no").fillna(False).to_numpy(bool),
        names_location=location.notna().to_numpy(),
        location_steps=cell_steps(location, predictions["location_true"]),
    )


def numbers(column: pd.Series[float]) -> FloatArray:
    """A column as float64 (N,), NaN where it is null."""
    return np.asarray(pd.to_numeric(column).to_numpy(dtype=float, na_value=np.nan))

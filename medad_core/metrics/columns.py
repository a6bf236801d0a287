"""The columns of `predictions` as plain arrays, one entry a slice or a patient.

One decision: null means null. Whether it arrives as None, NaN or pandas' NA, it becomes NaN in a number and False in a flag
here, so that no metric further on can take a missing label for a healthy one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medad_core.data.location import CELLS
from medad_core.data.names import patient_of
from medad_core.metrics.location import cell_steps

Brightness = Mapping[tuple[str, int], float]


@dataclass(frozen=True)
class Units:
    """N slices, or N patients seen as one unit each.

    patient: (N,) int, column of the bootstrap weights. label: (N,) float 0/1, NaN where unlabelled. map_score, p_yes,
    brightness: (N,) float, NaN where absent. answered: (N,) bool, an answer exists. says_yes, says_no: (N,) bool, the
    answer could be read and says so; neither for an unparsed one. has_location, location_steps: see `cell_steps`.
    """

    patient: np.ndarray
    patients: int
    label: np.ndarray
    map_score: np.ndarray
    p_yes: np.ndarray
    brightness: np.ndarray
    answered: np.ndarray
    says_yes: np.ndarray
    says_no: np.ndarray
    has_location: np.ndarray
    location_steps: np.ndarray

    @property
    def labelled(self) -> np.ndarray:
        return ~np.isnan(self.label)

    @property
    def positive(self) -> np.ndarray:
        return self.label == 1

    @property
    def negative(self) -> np.ndarray:
        return self.label == 0


def slice_units(predictions: pd.DataFrame, brightness: Brightness | None) -> Units:
    """One unit a row of `predictions`; patients are numbered in order of appearance; visits of one patient share a number."""
    patient, ids = pd.factorize(predictions["case_id"].map(patient_of))
    # An answer in two minds about its location is unparsed as a whole; reading its first word only would be a guess.
    parsed = predictions["answer_parsed"].fillna(False).astype(bool).to_numpy()
    verdict = predictions["verdict"]
    location = predictions["location"].where(predictions["location"].isin(CELLS), None)
    keys = zip(predictions["case_id"], predictions["slice_index"], strict=True)
    known = brightness or {}
    return Units(
        patient=patient,
        patients=len(ids),
        label=_numbers(predictions["label"]),
        map_score=_numbers(predictions["anomaly_score"]),
        p_yes=_numbers(predictions["p_yes"]),
        brightness=np.array([known.get((case, int(index)), np.nan) for case, index in keys], float),
        answered=predictions["answer"].notna().to_numpy(),
        says_yes=parsed & (verdict == "yes").fillna(False).to_numpy(bool),
        says_no=parsed & (verdict == "no").fillna(False).to_numpy(bool),
        has_location=location.notna().to_numpy(),
        location_steps=cell_steps(location, predictions["location_true"]),
    )


def patient_units(slices: Units) -> Units:
    """One unit a patient: tumour anywhere, highest score anywhere, yes anywhere.

    A patient without a readable yes is a no only when every answer reads no: an unparsed answer could have been the yes.
    """
    count, patient = slices.patients, slices.patient
    some_yes = _any(slices.says_yes, patient, count)
    some_unread = _any(slices.answered & ~slices.says_yes & ~slices.says_no, patient, count)
    some_answer = _any(slices.answered, patient, count)
    absent = np.full(count, np.nan)
    return Units(
        patient=np.arange(count),
        patients=count,
        label=_highest(slices.label, patient, count),
        map_score=_highest(slices.map_score, patient, count),
        p_yes=_highest(slices.p_yes, patient, count),
        brightness=_highest(slices.brightness, patient, count),
        answered=some_answer,
        says_yes=some_yes,
        says_no=some_answer & ~some_yes & ~some_unread,
        has_location=np.zeros(count, bool),
        location_steps=absent,
    )


def _numbers(column: pd.Series) -> np.ndarray:
    return pd.to_numeric(column).to_numpy(dtype=float, na_value=np.nan)


def _any(flags: np.ndarray, patient: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(patient, weights=flags, minlength=count) > 0


def _highest(values: np.ndarray, patient: np.ndarray, count: int) -> np.ndarray:
    """Maximum of each patient's values that are not NaN; NaN for a patient without any."""
    out = np.full(count, np.nan)
    np.fmax.at(out, patient, values)
    return out

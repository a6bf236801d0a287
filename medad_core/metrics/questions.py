"""What the answers to further questions are worth: how often the value is the mask's, beside the commonest value.

One decision: every labelled slice counts, also a tumour-free one, whose right answer is that there is no anomaly. An
answer that could not be read is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from medad_core.data.findings import SIZES
from medad_core.metrics.arrays import BoolArray, FloatArray
from medad_core.metrics.ranking import ratio
from medad_core.metrics.statistic import Statistic

_SIZE = {size: number for number, size in enumerate(SIZES)}


def question_statistics(asked: pd.DataFrame, patients: Sequence[str]) -> list[Statistic]:
    """Statistics of rows with the columns patient, question, value and value_true, with weights over `patients`.

    For each question in order of appearance: the share of right values, and that of always giving the commonest true
    value. For sizes also the share of tumours whose size is right or the next one.
    """
    labelled = asked[asked["value_true"].notna()]
    statistics = []
    for question, rows in labelled.groupby("question", sort=False):
        true = rows["value_true"]
        right = (rows["value"] == true).to_numpy(bool)
        flags = {"question_accuracy": right, "question_commonest": (true == true.mode()[0]).to_numpy(bool)}
        place = pd.Categorical(rows["patient"], categories=patients).codes
        for metric, flag in flags.items():
            statistics.append(_share(metric, str(question), flag, place, len(patients)))
        if question == "size":
            of_tumour = true.isin(_SIZE).to_numpy(bool)
            steps = (rows["value"].map(_SIZE) - true.map(_SIZE)).abs()
            near = (steps <= 1).to_numpy(bool)  # no size is next to none
            statistics.append(
                _share("question_size_near", "size", near[of_tumour], place[of_tumour], len(patients), "no tumours")
            )
    return statistics


def _share(
    metric: str,
    question: str,
    flags: BoolArray,
    patient: np.ndarray,
    patients: int,
    without: str = "no labelled slices",
) -> Statistic:
    part: FloatArray = np.bincount(patient, weights=flags.astype(float), minlength=patients).astype(float)
    whole: FloatArray = np.bincount(patient, minlength=patients).astype(float)

    def values(weights: FloatArray) -> FloatArray:
        return ratio(weights @ part, weights @ whole)

    return Statistic(metric, "text", question, len(flags), values, without)

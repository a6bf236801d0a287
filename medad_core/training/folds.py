"""Which patients are held out when."""

from __future__ import annotations

from collections.abc import Sequence

from medad_core.data.split import deal_like_cards
from medad_core.training.features import TrainingCase


def deal_folds(cases: Sequence[TrainingCase], folds: int, first: int, last: int, seed: int) -> list[list[str]]:
    """Case ids dealt to at most `folds` groups by patient, those with most tumour-free slices within first..last first.

    See `deal_like_cards`; visits of one patient stay together.
    """
    visits: dict[str, list[str]] = {}
    tumour_free: dict[str, int] = {}
    for case in cases:
        patient = case.patient
        visits.setdefault(patient, []).append(case.case_id)
        count = int((~case.has_tumour[case.within(first, last)]).sum())
        tumour_free[patient] = tumour_free.get(patient, 0) + count
    dealt = []
    for patients in deal_like_cards(tumour_free, folds, seed):
        dealt.append([case_id for patient in patients for case_id in visits[patient]])
    return dealt

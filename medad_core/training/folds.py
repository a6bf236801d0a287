"""Which patients are held out when."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medad_core.data.names import patient_of
from medad_core.training.features import TrainingCase


def deal_folds(cases: Sequence[TrainingCase], folds: int, first: int, last: int, seed: int) -> list[list[str]]:
    """Deal patients to `folds` groups like cards, those with most tumour-free slices within first..last first.

    Fold 0 therefore always holds the patient with most of them, and tumour-free slices spread as widely as they can.
    Patients with equally many are shuffled by `seed`.
    """
    patients: dict[str, list[TrainingCase]] = {}
    for case in cases:  # visits of one patient stay together
        patients.setdefault(patient_of(case.case_id), []).append(case)
    names = list(patients)
    normal = [sum(int((~case.has_tumour[case.within(first, last)]).sum()) for case in patients[name]) for name in names]
    order = sorted(np.random.default_rng(seed).permutation(len(names)), key=lambda index: -normal[index])
    return [
        [case.case_id for index in order[fold::folds] for case in patients[names[index]]]
        for fold in range(min(folds, len(names)))
    ]

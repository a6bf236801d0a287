"""Which patients are trained on, validated on and tested on.

One decision: patients and phantoms are dealt apart, each kind by the same shares, so that both are tested, and neither's
chance decides the other's. Visits of one patient go together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from medad_core.config import SplitSettings
from medad_core.data.names import patient_of
from medad_core.data.split import split_cases


class Fold(BaseModel):
    """Case ids of one fold; no patient is in two of the three."""

    model_config = ConfigDict(frozen=True)
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def split_of(self, case_id: str) -> str:
        """train, validation or test. Raises KeyError for a case that is not dealt."""
        for name in ("train", "validation", "test"):
            if case_id in getattr(self, name):
                return name
        raise KeyError(case_id)


def deal(
    tumour_free: Mapping[str, int], phantoms: Collection[str], folds: int, shares: SplitSettings
) -> tuple[Fold, ...]:
    """Deal cases to folds; `tumour_free` counts the tumour-free slices of each case in the screening range.

    `folds` 1 is the split that `shares` ask for. More deal the patients to as many test sets, those with most tumour-free
    slices first, like cards; the others are split to train and validation in the proportion of their shares.
    """
    kinds = [
        {case: count for case, count in tumour_free.items() if (case in phantoms) is phantom}
        for phantom in (False, True)
    ]
    dealt = [_deal_kind(kind, folds, shares) for kind in kinds if kind]
    joined = [
        [kind[number] for kind in dealt if number < len(kind)] for number in range(max(map(len, dealt), default=0))
    ]
    return tuple(
        Fold(
            **{
                name: tuple(sorted(case for part in parts for case in part[name]))
                for name in ("train", "validation", "test")
            }
        )
        for parts in joined
    )


def _deal_kind(tumour_free: Mapping[str, int], folds: int, shares: SplitSettings) -> list[dict[str, list[str]]]:
    patients: dict[str, list[str]] = {}
    for case in sorted(tumour_free):
        patients.setdefault(patient_of(case), []).append(case)
    normal = {patient: sum(tumour_free[case] for case in cases) for patient, cases in patients.items()}
    if folds == 1:
        tests, ratios = [None], (shares.train, shares.validation, shares.test)
    else:
        tests, ratios = (
            _tests(normal, folds, shares.seed),
            (
                shares.train / (shares.train + shares.validation),
                shares.validation / (shares.train + shares.validation),
                0.0,
            ),
        )
    result = []
    for number, test in enumerate(tests):
        rest = {patient: normal[patient] > 0 for patient in patients if test is None or patient not in test}
        split = split_cases(rest, ratios, shares.seed + number) | dict.fromkeys(test or (), "test")
        result.append(
            {
                name: [case for patient in patients if split[patient] == name for case in patients[patient]]
                for name in ("train", "validation", "test")
            }
        )
    return result


def _tests(normal: Mapping[str, int], folds: int, seed: int) -> Sequence[list[str]]:
    names = list(normal)
    order = sorted(np.random.default_rng(seed).permutation(len(names)), key=lambda index: -normal[names[index]])
    return [[names[index] for index in order[fold::folds]] for fold in range(min(folds, len(names)))]

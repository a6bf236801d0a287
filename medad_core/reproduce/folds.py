"""Which patients are trained on, validated on and tested on.

One decision: patients and phantoms are dealt apart, each kind by the same shares, so that both are tested, and
neither's chance decides the other's. Visits of one patient go together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from medad_core.config import SplitSettings
from medad_core.data.split import deal_like_cards, split_cases


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
    tumour_free: Mapping[str, int],
    patients: Mapping[str, str],
    phantoms: Collection[str],
    folds: int,
    shares: SplitSettings,
) -> tuple[Fold, ...]:
    """Deal cases to folds; `tumour_free` counts the tumour-free slices of each case in the screening range.

    `patients` says who each case is of.

    `folds` 1 is the split that `shares` ask for. More deal the patients to as many test sets, those with most
    tumour-free slices first, like cards; the others are split to train and validation in the proportion of their
    shares.
    """
    dealt: list[list[Fold]] = []
    for phantom in (False, True):
        kind = {case: count for case, count in tumour_free.items() if (case in phantoms) is phantom}
        if kind:
            dealt.append(_deal_kind(kind, patients, folds, shares))
    most = max(map(len, dealt), default=0)
    return tuple(_joined([kind[number] for kind in dealt if number < len(kind)]) for number in range(most))


def _joined(parts: Sequence[Fold]) -> Fold:
    """The fold of patients and that of phantoms as one."""
    return Fold(
        train=tuple(sorted(case for part in parts for case in part.train)),
        validation=tuple(sorted(case for part in parts for case in part.validation)),
        test=tuple(sorted(case for part in parts for case in part.test)),
    )


def _deal_kind(
    tumour_free: Mapping[str, int], patients: Mapping[str, str], folds: int, shares: SplitSettings
) -> list[Fold]:
    visits: dict[str, list[str]] = {}
    for case in sorted(tumour_free):
        visits.setdefault(patients[case], []).append(case)
    of_patient = {patient: sum(tumour_free[case] for case in cases) for patient, cases in visits.items()}
    if folds == 1:
        ratios = (shares.train, shares.validation, shares.test)
        return [_split(visits, of_patient, (), ratios, shares.seed)]
    learned = shares.train + shares.validation
    ratios = (shares.train / learned, shares.validation / learned, 0.0)
    tests = deal_like_cards(of_patient, folds, shares.seed)
    return [_split(visits, of_patient, test, ratios, shares.seed + number) for number, test in enumerate(tests)]


def _split(
    visits: Mapping[str, Sequence[str]],
    tumour_free: Mapping[str, int],
    test: Collection[str],
    ratios: tuple[float, float, float],
    seed: int,
) -> Fold:
    """Test patients as given, the others split by `ratios`."""
    others = {patient: tumour_free[patient] > 0 for patient in visits if patient not in test}
    split = split_cases(others, ratios, seed) | dict.fromkeys(test, "test")

    def cases(name: str) -> tuple[str, ...]:
        return tuple(case for patient in visits if split[patient] == name for case in visits[patient])

    return Fold(train=cases("train"), validation=cases("validation"), test=cases("test"))

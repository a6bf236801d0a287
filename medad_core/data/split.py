"""Patients to train, validation and test.

One decision: patients are dealt in two groups, those with tumour-free slices and those without. Only a few patients
have any (3 of 12 in BraTS 2021), and a split without them has no specificity and no AUROC. So that group is dealt
first, and spread over all three splits as long as it has members.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

SPLITS = ("train", "validation", "test")


def split_cases(
    has_tumour_free: Mapping[str, bool | None], ratios: tuple[float, float, float] = (0.7, 0.2, 0.1), seed: int = 0
) -> dict[str, str]:
    """Split of every patient, by the same seed always the same, whatever the order of the mapping.

    `has_tumour_free` says of each patient whether any slice of the range is without tumour. A patient with None
    (unlabelled) is left out of the result. `ratios` are the shares of train, validation and test.

    Sizes follow `ratios` as nearly as whole patients can (largest remainder), with two exceptions that are worth more
    than exact shares. A split with a positive share is not left empty while there are patients to fill it (test first,
    then train, then validation). Neither is it left without a patient with tumour-free slices.
    """
    labelled = {patient: flag for patient, flag in has_tumour_free.items() if flag is not None}
    patients = sorted(labelled)
    order = [patients[index] for index in np.random.default_rng(seed).permutation(len(patients))]
    sizes = _sizes(len(order), ratios)
    with_tumour_free = [patient for patient in order if labelled[patient]]
    without = [patient for patient in order if not labelled[patient]]
    quota = _quota(len(with_tumour_free), sizes, ratios)
    room = {split: sizes[split] - quota[split] for split in SPLITS}
    return _deal(with_tumour_free, quota) | _deal(without, room)


def _deal(patients: list[str], counts: dict[str, int]) -> dict[str, str]:
    """The split of each patient: as many as `counts` says go to each split, in order."""
    splits = [split for split, count in counts.items() for _ in range(count)]
    return dict(zip(patients, splits, strict=True))


def deal_like_cards(tumour_free: Mapping[str, int], hands: int, seed: int) -> list[list[str]]:
    """Patients dealt in turn to at most `hands` hands, those with most tumour-free slices first.

    `tumour_free` counts the slices of each patient. Hand 0 therefore holds the patient with most of them, and they
    spread as widely as they can. Patients with equally many are shuffled by `seed`.
    """
    names = list(tumour_free)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    order = sorted(shuffled, key=lambda index: -tumour_free[names[index]])
    return [[names[index] for index in order[hand::hands]] for hand in range(min(hands, len(names)))]


def _sizes(count: int, ratios: tuple[float, float, float]) -> dict[str, int]:
    """Whole numbers of patients, in sum `count`."""
    ideal = np.array(ratios) * count
    sizes = np.floor(ideal + 1e-9).astype(int)
    for index in np.argsort(-(ideal - sizes), kind="stable")[: count - sizes.sum()]:
        sizes[index] += 1
    wanted = [index for index in (2, 0, 1) if ratios[index] > 0]
    for index in wanted[:count]:
        if sizes[index] == 0:
            sizes[np.argmax(sizes)] -= 1
            sizes[index] += 1
    return dict(zip(SPLITS, sizes.tolist(), strict=True))


def _quota(count: int, sizes: dict[str, int], ratios: tuple[float, float, float]) -> dict[str, int]:
    """How many of the `count` patients with tumour-free slices each split gets: one each, then by room and share."""
    quota = dict.fromkeys(SPLITS, 0)
    shares = dict(zip(SPLITS, ratios, strict=True))
    for dealt in range(count):
        open_splits = [split for split in SPLITS if quota[split] < sizes[split]]
        empty = [split for split in ("test", "train", "validation") if split in open_splits and quota[split] == 0]
        lacks = {split: shares[split] * (dealt + 1) - quota[split] for split in open_splits}
        best = empty[0] if empty else max(lacks, key=lacks.__getitem__)
        quota[best] += 1
    return quota

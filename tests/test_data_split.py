"""The patient split: nobody twice, nobody lost, tumour-free slices in every split that their few patients can fill."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medad_core.data.split import SPLITS, deal_like_cards, split_cases

PATIENTS = st.dictionaries(st.text(min_size=1, max_size=6), st.sampled_from([True, False, None]), max_size=60)
SEEDS = st.integers(0, 2**31)
RATIOS = st.sampled_from([(0.7, 0.2, 0.1), (0.34, 0.33, 0.33), (0.8, 0.2, 0.0), (0.0, 0.0, 1.0), (0.9, 0.05, 0.05)])


def labelled(patients) -> set[str]:
    return {name for name, flag in patients.items() if flag is not None}


@given(PATIENTS, SEEDS, RATIOS)
def test_every_labelled_patient_is_in_exactly_one_split_and_no_other_is(patients, seed, ratios):
    result = split_cases(patients, ratios, seed)
    assert set(result) == labelled(patients)
    assert set(result.values()) <= {split for split, ratio in zip(SPLITS, ratios, strict=True) if ratio > 0}


@given(PATIENTS, SEEDS, st.randoms())
def test_the_split_does_not_depend_on_the_order_of_the_patients(patients, seed, random):
    shuffled = list(patients.items())
    random.shuffle(shuffled)
    assert split_cases(dict(shuffled), seed=seed) == split_cases(patients, seed=seed)


@given(PATIENTS, SEEDS, RATIOS)
def test_sizes_follow_the_ratios_within_a_patient_save_that_no_split_starves(patients, seed, ratios):
    count = len(labelled(patients))
    sizes = Counter(split_cases(patients, ratios, seed).values())
    filled = sum(ratio > 0 for ratio in ratios)
    for split, ratio in zip(SPLITS, ratios, strict=True):
        assert abs(sizes[split] - ratio * count) < filled
        if ratio > 0 and count >= filled:
            assert sizes[split] >= 1


@given(PATIENTS, SEEDS)
def test_patients_with_tumour_free_slices_reach_as_many_splits_as_they_can(patients, seed):
    result = split_cases(patients, seed=seed)
    rare = [name for name, flag in patients.items() if flag]
    assert len({result[name] for name in rare}) == min(3, len(rare), len(set(result.values())))


@given(SEEDS)
def test_one_patient_is_a_test_patient(seed):
    assert split_cases({"A": False}, seed=seed) == {"A": "test"}


@pytest.mark.parametrize("count", [10, 100, 1251])
def test_large_cohorts_are_split_seven_two_one(count):
    sizes = Counter(split_cases({str(n): n % 8 == 0 for n in range(count)}).values())
    assert sizes["train"] == pytest.approx(0.7 * count, abs=1) and sizes["validation"] == pytest.approx(
        0.2 * count, abs=1
    )


def test_another_seed_is_another_split():
    patients = {str(n): n % 8 == 0 for n in range(40)}
    assert split_cases(patients, seed=0) != split_cases(patients, seed=1)


@given(st.dictionaries(st.text(min_size=1, max_size=6), st.integers(0, 9), max_size=30), st.integers(1, 6), SEEDS)
def test_patients_dealt_like_cards_are_in_one_hand_each_and_hand_0_has_most_tumour_free_slices(counts, hands, seed):
    dealt = deal_like_cards(counts, hands, seed)
    assert sorted(patient for hand in dealt for patient in hand) == sorted(counts)
    assert len(dealt) == min(hands, len(counts))
    sizes = [len(hand) for hand in dealt]
    assert not sizes or max(sizes) - min(sizes) <= 1
    assert not dealt or counts[dealt[0][0]] == max(counts.values())
    assert dealt == deal_like_cards(counts, hands, seed)

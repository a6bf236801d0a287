"""Cases: volumes, diameters, sides and regions of maps against those of masks, beside plain numpy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from medad_core.metrics.cases import CaseComparison, case_statistics

SIDES = ("left", "right", "both", None)
REGIONS = ("insula", "thalamus", "cortex")


def drawn(rng: np.random.Generator, named: bool = True) -> CaseComparison:
    side, side_true = (SIDES[rng.integers(4)] for _ in range(2))

    def regions() -> tuple[str, ...] | None:
        return tuple(name for name in REGIONS if rng.random() < 0.5) if named else None

    lesions = int(rng.integers(1, 4)) if side_true else 0
    return CaseComparison(
        volume_ml=float(rng.uniform(1, 50)) if side else 0.0,
        volume_ml_true=float(rng.uniform(1, 50)) if side_true else 0.0,
        longest_mm=float(rng.uniform(5, 60)) if side else None,
        longest_mm_true=float(rng.uniform(5, 60)) if side_true else None,
        side=side,
        side_true=side_true,
        regions=regions(),
        regions_true=regions(),
        lesions=lesions,
        found=int(rng.integers(0, lesions + 1)),
        false=int(rng.integers(0, 3)),
    )


def values(cases: dict[str, CaseComparison], patients: dict[str, str], weights=None) -> dict[str, float]:
    weights = np.ones((1, len(set(patients.values())))) if weights is None else np.array([weights], float)
    return {one.metric: float(one.values(weights)[0]) for one in case_statistics(cases, patients)}


@pytest.mark.parametrize("seed", range(5))
def test_every_value_is_that_of_the_plain_formula(seed):
    rng = np.random.default_rng(seed)
    cases = {f"c{number}": drawn(rng) for number in range(40)}
    got = values(cases, {name: f"p{number // 2}" for number, name in enumerate(cases)})
    rows = list(cases.values())
    difference = np.array([row.volume_ml - row.volume_ml_true for row in rows])
    spread = 1.96 * difference.std(ddof=1)
    assert got["volume_bias_ml"] == pytest.approx(difference.mean())
    assert got["volume_limit_low_ml"] == pytest.approx(difference.mean() - spread)
    assert got["volume_limit_high_ml"] == pytest.approx(difference.mean() + spread)
    assert got["volume_absolute_error_ml"] == pytest.approx(np.abs(difference).mean())
    with_tumour = [abs(row.volume_ml / row.volume_ml_true - 1) for row in rows if row.volume_ml_true]
    assert got["volume_relative_error"] == pytest.approx(np.mean(with_tumour))
    both = [abs(row.longest_mm - row.longest_mm_true) for row in rows if row.longest_mm and row.longest_mm_true]
    assert got["diameter_absolute_error_mm"] == pytest.approx(np.mean(both))
    said, true = ([row.side or "none" for row in rows], [row.side_true or "none" for row in rows])
    assert got["side_f1"] == pytest.approx(f1_score(true, said, labels=list(SIDES[:3]), average="macro"))
    flags = [
        np.array([[name in (getattr(row, which) or ()) for name in REGIONS] for row in rows])
        for which in ("regions_true", "regions")
    ]
    assert got["region_f1"] == pytest.approx(f1_score(*flags, average="micro"))
    assert got["case_lesion_sensitivity"] == pytest.approx(
        sum(row.found for row in rows) / sum(row.lesions for row in rows)
    )
    assert got["false_lesions_per_case"] == pytest.approx(np.mean([row.false for row in rows]))


def test_a_patient_drawn_twice_counts_twice():
    rng = np.random.default_rng(1)
    cases = {f"c{number}": drawn(rng) for number in range(6)}
    twice = {**cases, "again": cases["c0"]}
    patients = {name: name for name in cases}
    weighted = values(cases, patients, [2, 1, 1, 1, 1, 1])
    assert weighted == pytest.approx(values(twice, {**patients, "again": "again"}), nan_ok=True)


def test_what_cannot_be_measured_is_undefined_and_no_zero():
    free = CaseComparison(0.0, 0.0, None, None, None, None, None, None, 0, 0, 0)
    got = values({"c": free}, {"c": "p", "unlabelled": "q"})
    assert got["volume_bias_ml"] == got["false_lesions_per_case"] == 0
    undefined = ("volume_limit_low_ml", "volume_relative_error", "diameter_absolute_error_mm", "side_f1", "region_f1")
    assert all(np.isnan(got[name]) for name in (*undefined, "case_lesion_sensitivity"))
    assert all(np.isnan(value) for value in values({}, {"unlabelled": "q"}).values())

"""Lesions are counted one by one, and every pathology has numbers of its own."""

from dataclasses import replace

import numpy as np
from test_metrics_table import OPTIONS, random_predictions

from medad_core.metrics import Evidence, LesionCounts, count_lesions, evaluate, render_markdown


def test_every_pathology_has_its_own_rows_beside_those_of_all():
    predictions = random_predictions()
    of_some = {f"p{number:02d}": "multiple | sclerosis" for number in range(3)}
    rows = evaluate(predictions, OPTIONS, Evidence(pathology=of_some))
    alone = evaluate(predictions[predictions["case_id"].isin(of_some)], OPTIONS)
    ours = [row for row in rows if row.split == "pathology: multiple | sclerosis"]
    assert [replace(row, split="all") for row in ours] == [row for row in alone if row.split == "all"]
    assert [row for row in rows if row.split == "all"] == [
        row for row in evaluate(predictions, OPTIONS) if row.split == "all"
    ]
    assert "## Pathology: multiple \\| sclerosis" in render_markdown(rows, "title")


def test_a_pathology_is_one_however_it_is_spelt():
    predictions = random_predictions(patients=3)
    rows = evaluate(predictions, OPTIONS, Evidence(pathology={"p00": "Glioma", "p01": "glioma", "p02": "MS"}))
    assert {row.split for row in rows if row.split.startswith("pathology")} == {"pathology: Glioma", "pathology: MS"}
    counted = {row.split: row.n for row in rows if row.metric == "yes_share"}
    assert counted["pathology: Glioma"] == 2 * counted["pathology: MS"]


def test_lesions_are_counted_one_by_one():
    mask = np.zeros((9, 9), bool)
    mask[1, 1] = mask[2, 2] = True  # one, over a corner
    mask[6:9, 6:9] = True
    seen = np.zeros((9, 9), bool)
    seen[2, 2] = seen[0, 8] = True
    assert count_lesions(seen, mask) == LesionCounts(lesions=2, touched=1)
    assert count_lesions(seen, np.zeros((9, 9), bool)) == LesionCounts(free_slices=1, false=2)
    predictions = random_predictions(patients=2)
    lesions = {"p00": LesionCounts(free_slices=20, false=30), "p01": LesionCounts(8, 6, 10, 0)}
    rows = {row.metric: row for row in evaluate(predictions, OPTIONS, Evidence(lesions=lesions)) if row.split == "all"}
    found = rows["map_lesion_sensitivity"]
    assert (found.value, found.n, found.subset, found.level) == (0.75, 8, "lesions", "image")
    false = rows["map_false_lesions_per_slice"]
    assert (false.value, false.n, false.ci_high) == (1.0, 30, 1.5)  # a patient alone has 30 in 20 slices
    assert "Map, lesions that it touches | 0.750" in render_markdown(list(rows.values()), "title")

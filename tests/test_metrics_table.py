"""The metrics table says what it measured, with intervals over patients, and why a metric is missing."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)  # fmt: skip

from medad_core.config import EvaluateSettings
from medad_core.metrics import (
    METRICS,
    Evidence,
    MetricRow,
    PixelHistogram,
    evaluate,
    metric_rows,
    metrics_table,
    render_markdown,
    slice_brightness,
)  # fmt: skip
from medad_core.metrics.bootstrap import interval, patient_weights
from medad_core.metrics.location import CELLS, cell_steps
from medad_core.metrics.ranking import auroc, average_precision, weighted_curve

OPTIONS = EvaluateSettings(bootstrap=200, seed=0, map_threshold=0.5)


def row(case_id: str, index: int, label: int | None, verdict: str | None = "no", **columns) -> dict:
    """One row of predictions; `verdict` None is an answer that could not be read."""
    location = columns.pop("location", "top" if verdict == "yes" else None)
    defaults = {
        "split": "test", "tumour_pixels": None if label is None else 50 * label, "anomaly_score": 0.5, "p_yes": 0.5,
        "answer": verdict or "perhaps", "answer_parsed": verdict is not None, "location_true": "top" if label else None,
        "location_anatomical": None, "peak_y": 0.0, "peak_x": 0.0, "fingerprint": "f",
    }  # fmt: skip
    keys = {"case_id": case_id, "slice_index": index, "label": label, "verdict": verdict, "location": location}
    return {**keys, **defaults, **columns}


def random_predictions(patients: int = 12, slices: int = 20, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        for index in range(slices):
            label = int(rng.random() < (0.0 if patient % 4 == 0 else 0.7))
            score = float(np.clip(0.3 * label + rng.normal(0.4, 0.2), 0, 1))
            verdict = "yes" if score > 0.5 else "no"
            rows.append(row(f"p{patient:02d}", index, label, verdict, anomaly_score=score, p_yes=round(score, 1)))
    return pd.DataFrame(rows)


def by_name(rows: list[MetricRow], split: str = "all") -> dict[tuple[str, str], MetricRow]:
    return {(r.level, r.metric): r for r in rows if r.split == split}


def evaluated(rows: list[dict], **options) -> dict[tuple[str, str], MetricRow]:
    return by_name(evaluate(pd.DataFrame(rows), OPTIONS, Evidence(**options)))


def test_image_metrics_equal_scikit_learn():
    frame = random_predictions()
    got = by_name(evaluate(frame, OPTIONS))
    yes = frame.verdict == "yes"
    expected = {
        "map_auroc": roc_auc_score(frame.label, frame.anomaly_score),
        "map_ap": average_precision_score(frame.label, frame.anomaly_score),
        "p_yes_auroc": roc_auc_score(frame.label, frame.p_yes),
        "p_yes_ap": average_precision_score(frame.label, frame.p_yes),
        "verdict_accuracy": accuracy_score(frame.label, yes),
        "verdict_balanced_accuracy": balanced_accuracy_score(frame.label, yes),
        "verdict_sensitivity": recall_score(frame.label, yes),
        "verdict_specificity": recall_score(frame.label, yes, pos_label=0),
        "verdict_f1": f1_score(frame.label, yes),
        "majority_class_accuracy": max(frame.label.mean(), 1 - frame.label.mean()),
    }
    assert {name: got["image", name].value for name in expected} == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 3)), min_size=1, max_size=40))
def test_weighted_curves_equal_scikit_learn_on_repeated_items(items):
    scores, labels, weights = (np.array(column) for column in zip(*items, strict=True))
    again = np.repeat(np.arange(len(items)), weights)
    got = [
        weighted_curve(c, scores.astype(float), labels, np.arange(len(items)), weights[None].astype(float))[0]
        for c in (auroc, average_precision)
    ]
    if len(set(labels[again])) < 2:
        assert np.isnan(got).all()
        return
    assert got[0] == pytest.approx(roc_auc_score(labels[again], scores[again]))
    assert got[1] == pytest.approx(average_precision_score(labels[again], scores[again]))


def test_operating_points_are_those_on_scikit_learns_curve():
    frame = random_predictions()
    got = by_name(evaluate(frame, OPTIONS))
    for name, score in (("map", frame.anomaly_score), ("p_yes", frame.p_yes)):
        false_alarms, found, _ = roc_curve(frame.label, score, drop_intermediate=False)
        sensitivity = found[false_alarms <= 0.05].max()
        specificity = 1 - false_alarms[found >= 0.95].min()
        assert got["image", f"{name}_sensitivity_at_specificity_95"].value == pytest.approx(sensitivity)
        assert got["image", f"{name}_specificity_at_sensitivity_95"].value == pytest.approx(specificity)


def test_the_calibration_error_is_the_mean_gap_between_p_yes_and_the_share_with_tumour():
    rows = [row("a", index, int(index < 3), "yes", p_yes=0.9) for index in range(4)]
    rows += [row("b", index, 0, "no", p_yes=0.1) for index in range(4)]
    assert evaluated(rows)["image", "p_yes_ece"].value == pytest.approx((abs(0.9 - 0.75) + 0.1) / 2)
    perfect = [row("a", index, index % 2, "yes", p_yes=float(index % 2)) for index in range(4)]
    assert evaluated(perfect)["image", "p_yes_ece"].value == pytest.approx(0)


def test_sensitivity_by_size_counts_the_slices_whose_tumour_has_that_area():
    area = {0: 20.0, 1: 49.9, 2: 50.0, 3: 300.0, 4: 5000.0}
    rows = [row("a", index, 1, "yes" if index in (1, 2, 4) else "no") for index in area] + [row("b", 0, 0, "no")]
    of_slice = {("a", index): mm2 for index, mm2 in area.items()} | {("b", 0): 0.0}
    table = evaluate(pd.DataFrame(rows), OPTIONS, Evidence(area_mm2=of_slice))
    by_area = {
        r.subset: (r.value, r.n) for r in table if r.metric == "verdict_sensitivity_by_area" and r.split == "all"
    }
    assert by_area == {
        "area 0 to 50 mm²": (0.5, 2),
        "area 50 to 200 mm²": (1.0, 1),
        "area 200 to 400 mm²": (0.0, 1),
        "area 400 to 800 mm²": (None, 0),
        "area from 800 mm²": (1.0, 1),
    }


def test_patients_are_positive_by_any_slice_and_scored_by_their_highest():
    got = evaluated([
        row("ill", 0, 0, "no", anomaly_score=0.1), row("ill", 1, 1, "yes", anomaly_score=0.8),
        row("well", 0, 0, "no", anomaly_score=0.7), row("well", 1, 0, "no", anomaly_score=0.2),
        row("alarm", 0, 0, "yes", anomaly_score=0.9), row("alarm", 1, 0, "no", anomaly_score=0.0),
    ])  # fmt: skip
    assert got["patient", "map_auroc"].value == 0.5  # 0.8 above 0.7 and below 0.9
    assert got["patient", "verdict_sensitivity"].value == 1.0
    assert got["patient", "verdict_specificity"].value == 0.5
    assert got["patient", "verdict_accuracy"].value == pytest.approx(2 / 3)
    assert got["patient", "verdict_accuracy"].n == 3


def test_an_unparsed_answer_counts_as_wrong_for_either_label():
    got = evaluated([row("a", 0, 1, None), row("a", 1, 1, "yes"), row("b", 0, 0, None), row("b", 1, 0, "no")])
    for metric in ("verdict_accuracy", "verdict_sensitivity", "verdict_specificity", "verdict_f1"):
        assert got["image", metric].value == 0.5
    assert got["text", "unparsed_share"].value == 0.5
    # b's unread answer could have been a yes, so b is no true negative.
    assert got["patient", "verdict_specificity"].value == 0.0
    assert got["patient", "verdict_sensitivity"].value == 1.0


def test_location_is_judged_among_true_positives_only():
    got = evaluated([
        row("a", 0, 1, "yes", location="top", location_true="top"),
        row("a", 1, 1, "yes", location="left", location_true="top"),
        row("a", 2, 1, "yes", location="bottom", location_true="top"),
        row("a", 3, 1, "yes", location=None, location_true="top"),
        row("a", 4, 1, "no", location_true="top"),
        row("b", 0, 0, "yes", location="center"), row("b", 1, 0, "no"), row("b", 2, 0, "no"),
    ])  # fmt: skip
    assert got["text", "location_exact"].value == 0.25
    assert got["text", "location_exact_or_neighbour"].value == 0.5
    assert got["text", "location_exact"].n == 4
    assert got["text", "hallucinated_location_share"].value == pytest.approx(1 / 3)
    assert got["text", "yes_share"].value == pytest.approx(5 / 8)


def test_cell_steps_are_kings_moves():
    assert cell_steps(CELLS, ["center"] * 9).tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 1]
    assert cell_steps(["top left", "top left"], ["bottom right", "top right"]).tolist() == [2, 2]
    assert np.isnan(cell_steps([None, "nowhere"], ["top", "top"])).all()


def test_verdict_map_agreement_needs_no_label():
    got = evaluated([
        row("a", 0, None, "yes", anomaly_score=0.9), row("a", 1, None, "no", anomaly_score=0.9),
        row("a", 2, None, "no", anomaly_score=0.1), row("a", 3, None, None, anomaly_score=0.9),
    ])  # fmt: skip
    assert got["text", "verdict_map_agreement"].value == pytest.approx(2 / 3)


def test_unlabelled_cohorts_get_null_and_a_reason():
    got = evaluated([row("a", 0, None, "yes"), row("b", 0, None, "no")])
    for key, reason in {
        ("image", "map_auroc"): "no labelled slices",
        ("image", "verdict_accuracy"): "no labelled slices",
        ("patient", "map_auroc"): "no labelled patients",
        ("pixel", "map_auroc"): "no labelled pixels of both classes",
        ("pixel", "map_aupro"): "no labelled pixels of both classes",
        ("pixel", "map_dice"): "no tumour slices",
        ("text", "location_exact"): "no true positives",
    }.items():
        assert (got[key].value, got[key].reason) == (None, reason)
    assert got["text", "yes_share"].value == 0.5


def test_one_class_gives_null_with_the_absent_class_named():
    got = evaluated([row("a", 0, 1, "yes"), row("b", 0, 1, "no")])
    assert (got["image", "map_auroc"].value, got["image", "map_ap"].value) == (None, None)
    assert got["image", "map_auroc"].reason == "one class only: no tumour-free slices"
    assert got["image", "verdict_specificity"].value is None
    assert got["image", "verdict_sensitivity"].value == 0.5
    assert evaluated([row("a", 0, 0)])["image", "verdict_f1"].reason == "one class only: no slices with tumour"


def test_missing_answers_are_no_wrong_answers():
    rows = [
        row("a", 0, 1, None, answer=None, answer_parsed=False, p_yes=None),
        row("b", 0, 0, None, answer=None, p_yes=None),
    ]
    got = evaluated(rows)
    assert got["image", "verdict_accuracy"].reason == "no answers for labelled slices"
    assert got["image", "p_yes_auroc"].reason == "no scores for labelled slices"
    assert got["text", "unparsed_share"].reason == "no answers"
    assert got["image", "map_auroc"].value == 0.5


def histogram(anomaly_map: list[float], mask: list[int]) -> PixelHistogram:
    out = PixelHistogram()
    out.accumulate(np.array([anomaly_map], np.float32), np.array([mask], bool))
    return out


def test_aupro_is_that_of_all_patients_together():
    pixel = {"a": histogram([0.9, 0.2, 0.4, 0.1], [1, 0, 1, 0]), "b": histogram([0.1, 0.9, 0.3], [1, 0, 0])}
    got = evaluated([row("a", 0, 1), row("b", 0, 1)], pixel=pixel)
    assert got["pixel", "map_aupro"].value == pytest.approx((pixel["a"] + pixel["b"]).aupro, abs=1e-12)
    # At 0.9 one region of three and one healthy pixel of four at once: a slope from 0 to (1/4, 1/3).
    # At 0.4 a second region, then flat.
    assert got["pixel", "map_aupro"].value == pytest.approx((1 / 4 * 1 / 3 / 2 + 0.05 * 2 / 3) / 0.3)


def test_dice_is_pooled_over_pixels_and_averaged_over_patients():
    pixel = {"a": histogram([0.9, 0.9, 0.9, 0.1], [1, 1, 1, 0]), "b": histogram([0.1, 0.9], [1, 0])}
    got = evaluated([row("a", 0, 1), row("b", 0, 1), row("c", 0, 0)], pixel=pixel)
    assert got["pixel", "map_dice"].value == pytest.approx(6 / 8)  # 3 hits, 1 false call, 1 miss
    assert got["patient", "map_dice"].value == pytest.approx(0.5)  # 1.0 and 0.0
    assert got["patient", "map_dice"].n == 2
    assert got["pixel", "map_auroc"].n == 6


def test_brightness_stands_beside_the_map_score():
    rows = [row("a", 0, 1, anomaly_score=0.2), row("b", 0, 0, anomaly_score=0.8), row("c", 0, 0, anomaly_score=0.1)]
    got = evaluated(rows, brightness={("a", 0): 200.0, ("b", 0): 100.0, ("c", 0): 90.0})
    assert got["image", "brightness_auroc"].value == 1.0
    assert got["image", "map_auroc"].value == 0.5
    assert ("image", "brightness_auroc") not in evaluated(rows)


def test_slice_brightness_is_the_99_5th_percentile_of_the_brain():
    image = np.arange(201, dtype=np.uint8).reshape(3, 67)
    assert slice_brightness(image, np.ones_like(image, bool)) == pytest.approx(199.0)
    assert slice_brightness(image, image < 101) == pytest.approx(99.5)
    assert slice_brightness(image, np.zeros_like(image, bool)) == 0.0


def test_every_split_and_all_are_reported():
    frame = random_predictions()
    frame["split"] = np.where(frame.case_id < "p06", "train", "test")
    rows = evaluate(frame, OPTIONS)
    assert {r.split for r in rows} == {"all", "train", "test"}
    tested = frame[frame.split == "test"]
    assert by_name(rows, "test")["image", "map_auroc"].value == pytest.approx(
        roc_auc_score(tested.label, tested.anomaly_score)
    )


def test_the_bootstrap_draws_patients_whole():
    weights = patient_weights(7, 50, seed=3)
    assert weights.shape == (50, 7)
    assert (weights.sum(axis=1) == 7).all()
    # Copying every slice of every patient adds nothing: an interval over slices would shrink by the root of ten.
    frame = random_predictions()
    copies = pd.concat([frame.assign(slice_index=frame.slice_index + 1000 * n) for n in range(10)])
    once, ten = (by_name(evaluate(f, OPTIONS))["image", "map_auroc"] for f in (frame, copies))
    assert (once.ci_low, once.ci_high) == pytest.approx((ten.ci_low, ten.ci_high))


def test_the_interval_equals_one_drawn_by_hand():
    frame = random_predictions()
    draws = patient_weights(12, OPTIONS.bootstrap, OPTIONS.seed).astype(int)
    groups = [group for _, group in frame.groupby("case_id", sort=True)]
    values = []
    for drawn in draws:
        sample = pd.concat([group for group, times in zip(groups, drawn, strict=True) for _ in range(times)])
        values.append(roc_auc_score(sample.label, sample.anomaly_score))
    got = by_name(evaluate(frame, OPTIONS))["image", "map_auroc"]
    assert (got.ci_low, got.ci_high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))


def test_undefined_draws_are_dropped_and_counted():
    spread = interval(np.array([0.5, np.nan, 0.7, 0.9]), patients=4)
    assert spread.dropped == 1
    assert spread.reason == "interval without 1 of 4 draws, undefined there"
    assert interval(np.array([0.5, np.nan, np.nan]), patients=4).low is None
    assert interval(np.zeros(0), patients=1).reason == "no interval from one patient"


def test_the_table_depends_on_neither_row_order_nor_run():
    frame = random_predictions()
    assert evaluate(frame, OPTIONS) == evaluate(frame.sample(frac=1, random_state=5), OPTIONS)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.sampled_from([0, 1, None]), st.sampled_from(["yes", "no", None]), st.floats(0, 1)
        ),
        max_size=12,
    )
)
def test_any_predictions_give_a_bounded_value_or_a_reason(drawn):
    rows = [row(case, n, label, verdict, anomaly_score=score) for n, (case, label, verdict, score) in enumerate(drawn)]
    frame = pd.DataFrame(rows, columns=row("a", 0, 1).keys())
    for got in evaluate(frame, EvaluateSettings(bootstrap=20, seed=1, map_threshold=0.5)):
        if got.value is None:
            assert got.reason and got.ci_low is None
        else:
            assert 0 <= got.value <= 1 + 1e-12
            assert got.ci_low is None or got.ci_low <= got.ci_high


def test_the_parquet_table_keeps_every_row():
    rows = evaluate(random_predictions(), OPTIONS)
    table = metrics_table(rows)
    assert table.schema.equals(METRICS)
    earlier = ["metric", "level", "split", "subset", "value", "ci_low", "ci_high", "n", "reason"]
    assert table.schema.names == [*earlier, "supervision"]
    assert metric_rows(table) == rows
    assert metric_rows(table.select(earlier)) == [replace(row, supervision="") for row in rows]


def test_every_row_says_what_its_model_has_learned_from():
    frame = random_predictions()
    brightness = {(row.case_id, row.slice_index): 0.5 for row in frame.itertuples()}
    rows = evaluate(frame, OPTIONS, Evidence(brightness=brightness, learned_from="masks"))
    by_kind = {row.metric.split("_")[0]: row.supervision for row in rows}
    assert by_kind.pop("brightness") == "none" and by_kind.pop("majority") == "the labels themselves"
    assert set(by_kind.values()) == {"masks"}


def test_markdown_shows_values_intervals_and_reasons():
    rows = [
        MetricRow("map_auroc", "image", "test", "all", 0.9461, 0.92, 0.97, 2419, None, "masks"),
        MetricRow(
            "map_auroc", "patient", "test", "all", None, None, None, 59, "one class only: no tumour-free patients"
        ),
    ]
    text = render_markdown(rows, "Cohort X", ["Not a medical device."])
    assert text.startswith("# Cohort X\n\nNot a medical device.\n\n## Split: test")
    assert "| Map, AUROC | 0.946 | 0.920 to 0.970 | 2,419 | masks |  |" in text
    assert "| Map, AUROC | – | – | 59 |  | one class only: no tumour-free patients |" in text


def test_two_visits_of_a_patient_are_one_patient_of_the_bootstrap():
    rows = [
        row("BraTS-GLI-00001-000", 60, label=1),
        row("BraTS-GLI-00001-001", 60, label=0),
        row("BraTS-GLI-00002-000", 60, label=0),
    ]
    assert evaluated(rows)["patient", "map_auroc"].n == 2


def test_the_patient_of_the_predictions_counts_whatever_the_case_is_called():
    rows = [
        row("P1_early", 60, label=1) | {"patient": "P1"},
        row("P1_late", 60, label=0) | {"patient": "P1"},
        row("P2", 60, label=0) | {"patient": "P2"},
    ]
    assert evaluated(rows)["patient", "map_auroc"].n == 2

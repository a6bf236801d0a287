"""The page shows what a run found, keeps the LLM's sentences apart from facts, and needs nothing from outside."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pytest import approx

from medad_core.config import EvaluateSettings
from medad_core.facts.case import CaseFacts, Lesions
from medad_core.facts.lesions import Grid
from medad_core.facts.worklist import Entry, Screened
from medad_core.metrics import MetricRow, evaluate
from medad_core.report import GalleryItem, RunSummary, case_rows, choose_gallery, reliability_bins, render_report
from medad_core.report.colour import overlay
from medad_core.report.figures import brain_view, outline_path
from medad_core.report.gallery import OUTCOMES
from medad_core.stages.evaluate import reliability

SUMMARY = RunSummary("cohort A", "1 January 2026", False, (("LLM", "small"),), "abc123", 0.5)
METRIC = MetricRow("map_auroc", "image", "test", "all", 0.946, 0.92, 0.97, 287, None, "masks")


def prediction(case_id="p1", index=60, label: int | None = 1, verdict: str | None = "yes", **columns) -> dict:
    values = {
        "case_id": case_id,
        "slice_index": index,
        "split": "test",
        "label": label,
        "tumour_pixels": 40 if label else label,
        "anomaly_score": 0.75,
        "p_yes": 0.9,
        "verdict": verdict,
        "answer": f"{verdict}, wrote the model",
        "answer_parsed": verdict is not None,
        "location": "top" if verdict == "yes" else None,
        "location_true": "top" if label else None,
        "location_anatomical": None,
    }
    return {**values, **columns}


def frame(rows: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(rows).astype({"label": "Int8", "tumour_pixels": "Int32"})


def item(**columns) -> GalleryItem:
    mask = np.zeros((40, 50), bool)
    mask[10:15, 20:24] = True
    image = np.zeros((40, 50), np.uint8)
    image[5:35, 10:40] = 120
    return GalleryItem.of(prediction(**columns), image, mask, np.where(mask, 0.8, 0.05).astype(np.float32))


class Page(HTMLParser):
    """Collects tags with their attributes, and complains of tags left open."""

    VOID = ("meta", "br", "img", "link", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page(summary=SUMMARY, rows=(METRIC,), gallery=(), cases=(), bins=()) -> str:
    return render_report(summary, rows, gallery, cases, bins)


def test_thereliability_figure_is_of_the_split_of_the_table_beside_it():
    columns = {
        "anomaly_score": 0.5,
        "p_yes": 0.9,
        "verdict": "yes",
        "answer_parsed": True,
        "location": "center",
        "answer": "x",
    }
    columns |= {"location_true": "center", "patient": ["a", "a", "b", "b"], "case_id": ["a", "a", "b", "b"]}
    columns |= {"slice_index": [1, 2, 1, 2], "label": [0, 1, 1, 1], "split": ["train", "train", "test", "test"]}
    frame = pd.DataFrame(columns, index=range(4))
    rows = evaluate(frame, EvaluateSettings(bootstrap=5))
    assert [(one.slices, one.found) for one in reliability(rows, frame)] == [(2, 1.0)]
    undefined = [replace(row, value=None) for row in rows]
    assert not reliability(undefined, frame)


def test_thereliability_figure_is_of_the_slices_that_are_labelled():
    frame = pd.DataFrame({"label": [0, 1, 1, 1, None], "p_yes": [0.02, 0.04, 0.97, 1.0, 0.5]})
    bins = reliability_bins(frame)
    assert [(one.slices, one.claimed, one.found) for one in bins] == [(2, approx(0.03), 0.5), (2, approx(0.985), 1.0)]
    text = page(bins=bins)
    assert text.count("<circle") == 2 and "2 slices: mean p(yes) 0.030, with tumour 0.500" in text
    assert not reliability_bins(frame.assign(label=None)) and "<circle" not in page()


def test_the_page_asks_nothing_of_the_network():
    text = page(gallery=[item(), item(index=61)])
    references = [
        attributes[name] for _, attributes in Page(text).tags for name in ("src", "href") if name in attributes
    ]
    assert references and all(reference.startswith(("data:image/webp;base64,", "#")) for reference in references)
    assert not re.search(r"https?:|url\(|@import|<script", text)


def test_every_tag_is_closed_and_every_picture_described():
    parsed = Page(page(replace(SUMMARY, rejected=(("x", "truncated"),)), gallery=[item(), item(label=0, verdict="no")]))
    assert parsed.open == []
    pictures = [attributes for tag, attributes in parsed.tags if tag == "svg"]
    assert len(pictures) == 6
    assert all(picture["role"] == "img" and "case p1" in picture["aria-label"] for picture in pictures)


def test_text_of_cases_and_models_is_escaped():
    text = page(
        gallery=[item(case_id="<b>&", answer="<script>alert(1)</script>")], cases=case_rows(frame([prediction("<b>&")]))
    )
    assert "<script" not in text and "<b>&" not in text
    assert "&lt;b&gt;&amp;" in text


def test_the_banners_say_what_the_run_is_not():
    assert "Not a medical device." in page()
    assert "Generated pictures, no patients." not in page()
    assert "Generated pictures, no patients." in page(replace(SUMMARY, phantom=True))


def test_the_sentence_stands_in_quotation_apart_from_the_facts():
    text = page(gallery=[item(answer="Yes, at the top.")])
    assert "The language model wrote</span><q>Yes, at the top.</q>" in " ".join(text.split()).replace(
        "</span> <q>", "</span><q>"
    )
    assert "Yes, at the top." not in re.search(r"<dl>.*?</dl>", text, re.S).group()


def test_metrics_show_value_interval_and_reason():
    missing = MetricRow(
        "map_auroc", "patient", "test", "all", None, None, None, 7, "one class only: no tumour-free patients"
    )
    text = page(rows=[METRIC, missing])
    assert "split test" in text
    assert "0.946" in text and "0.920 to 0.970" in text
    assert "one class only: no tumour-free patients" in text


def test_ml_and_mm_have_no_bar_from_0_to_1():
    row = MetricRow("map_volume_bias_ml", "case", "test", "all", 12.5, -3.0, 40.0, 8, None)
    text = page(rows=[METRIC, row])
    assert "12.500" in text and "left:1250" not in text and "left:-" not in text and "left:94.60%" in text
    assert "Cases</th>" in text and "Cases</th>" not in page(rows=[METRIC])


def entry(case_id: str, p_yes: float, warning: str = "") -> Entry:
    facts = CaseFacts(case_id, Grid((1.0, 1.0, 1.0), 60, None), 41, 0.5, 0.05, Lesions(()), None, "")
    screened = Screened("p", 41, p_yes, 0.8, 2, 0, 0, 77)
    return Entry(facts, screened, (warning,) if warning else ())


def test_cases_stand_in_the_order_of_the_worklist_with_their_doubts():
    rows = frame([prediction("<b>&"), prediction("calm")])
    text = page(cases=case_rows(rows, [entry("calm", 0.9), entry("<b>&", 0.8, "looks like <i>T1</i>")]))
    assert text.index("calm") < text.index("&lt;b&gt;&amp;") and "<i>" not in text
    assert "finding of the language model only; looks like &lt;i&gt;T1&lt;/i&gt;" in text


def test_an_unlabelled_cohort_gets_no_scores_and_no_outline():
    rows = frame([prediction(label=None, verdict="yes"), prediction(label=None, verdict="no", index=61)])
    unlabelled = replace(item(label=None), mask=None)
    text = page(
        rows=[replace(METRIC, value=None, ci_low=None, ci_high=None, split="all")],
        gallery=[unlabelled],
        cases=case_rows(rows),
    )
    assert "answered yes for 1 of 2 slices" in text
    assert "How good it was" not in text and "expert outline" not in text and "Tumour, expert" not in text
    assert "Answered yes, no expert mask" in text


def test_rejected_cases_are_listed_with_their_reason():
    text = page(replace(SUMMARY, rejected=(("case 9", "FLAIR file is truncated"),)))
    assert "case 9" in text and "FLAIR file is truncated" in text


def test_a_run_without_any_slice_still_gives_a_page():
    assert Page(page(rows=[])).open == []


def test_a_full_gallery_stays_below_three_megabytes():
    # Harder than real slices: noise all over the picture, a ragged mask, and a map of the decoder's 16 × 16 resolution.
    rng = np.random.default_rng(0)
    picture = np.clip(rng.normal(110, 25, (240, 240)), 0, 255).astype(np.uint8)
    mask = np.zeros((240, 240), bool)
    mask[60:160, 60:160] = np.kron(rng.random((25, 25)) < 0.5, np.ones((4, 4), bool))
    anomaly_map = np.asarray(
        Image.fromarray(rng.random((16, 16)).astype(np.float32)).resize((240, 240), Image.Resampling.BILINEAR)
    )
    items = [replace(item(index=n), image=picture, mask=mask, anomaly_map=anomaly_map) for n in range(24)]
    assert len(page(gallery=items).encode()) < 3_000_000


def test_outcomes_take_equal_shares_and_the_rest_is_filled():
    kinds = [(1, "yes")] * 50 + [(0, "no")] * 50 + [(1, "no")] * 2 + [(0, "yes")] * 20
    chosen = choose_gallery(frame([prediction(f"p{n % 7}", n, *kind) for n, kind in enumerate(kinds)]), 17, seed=0)
    counts = chosen.groupby(["label", "verdict"]).size().to_dict()
    assert counts == {(1, "no"): 2, (0, "yes"): 5, (1, "yes"): 5, (0, "no"): 5}
    assert chosen["verdict"].tolist()[:2] == ["no", "no"]  # the missed tumours lead


def test_the_choice_spreads_over_patients_and_over_their_slices():
    rows = frame([prediction(case, index) for case in ("a", "b", "c") for index in range(60, 101)])
    chosen = choose_gallery(rows, 6, seed=3)
    assert chosen.groupby("case_id").size().tolist() == [2, 2, 2]
    assert (chosen.groupby("case_id")["slice_index"].agg(np.ptp) >= 20).all()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from([0, 1, None]), st.sampled_from(["yes", "no", None])),
        min_size=1,
        max_size=30,
    ),
    st.integers(0, 5),
)
def test_the_choice_depends_on_rows_and_seed_only(drawn, seed):
    rows = frame([prediction(case, index, label, verdict) for index, (case, label, verdict) in enumerate(drawn)])
    first, again = choose_gallery(rows, 8, seed), choose_gallery(rows.sample(frac=1, random_state=1), 8, seed)
    assert first["slice_index"].tolist() == again["slice_index"].tolist()
    assert len(first) == min(8, len(rows))
    items = [GalleryItem.of(row, np.zeros((2, 2), np.uint8), None, np.zeros((2, 2))) for _, row in first.iterrows()]
    assert [list(OUTCOMES).index(i.outcome) for i in items] == sorted(list(OUTCOMES).index(i.outcome) for i in items)


def test_null_columns_become_none():
    row = frame([prediction(label=None, verdict=None, p_yes=np.nan, anomaly_score=None)]).iloc[0]
    shown = GalleryItem.of(row, np.zeros((2, 2), np.uint8), None, np.zeros((2, 2)))
    assert (shown.label, shown.tumour_pixels, shown.verdict, shown.p_yes, shown.anomaly_score, shown.location) == (
        None,
    ) * 6
    assert shown.outcome == "unread"


def test_cases_are_ordered_by_suspicion():
    rows = [
        prediction("calm", 60, 0, "no", anomaly_score=0.2),
        prediction("calm", 61, 0, "no", anomaly_score=0.3),
        prediction("loud", 60, 1, "yes", anomaly_score=0.9, location="left"),
        prediction("loud", 61, 1, "yes", anomaly_score=0.8, location="left"),
    ]
    loud, calm = case_rows(frame(rows))
    assert (loud.case_id, loud.yes_slices, loud.tumour_slices) == ("loud", 2, 2)
    assert (loud.highest_slice, loud.location) == (60, "left")
    assert (calm.case_id, calm.yes_slices, calm.tumour_slices) == ("calm", 0, 0)
    assert (calm.highest_slice, calm.location) == (61, None)


def test_the_outline_follows_the_pixel_edges():
    mask = np.zeros((5, 6), bool)
    mask[1:3, 2:5] = True
    assert sorted(re.findall(r"M[^M]+", outline_path(mask))) == sorted(["M2 1h3", "M2 3h3", "M2 1v2", "M5 1v2"])
    assert outline_path(np.zeros((5, 6), bool)) == ""


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=20, max_size=20))
def test_the_outline_is_as_long_as_the_perimeter(pixels):
    mask = np.array(pixels).reshape(4, 5)
    padded = np.pad(mask, 1).astype(int)
    perimeter = sum(np.abs(np.diff(padded, axis=axis)).sum() for axis in (0, 1))
    assert sum(int(length) for length in re.findall(r"[hv](\d+)", outline_path(mask))) == perimeter


def test_the_view_is_a_square_that_holds_every_brain():
    first, second = np.zeros((240, 240), np.uint8), np.zeros((240, 240), np.uint8)
    first[40:200, 60:180] = second[50:210, 70:190] = 9
    view = brain_view([first, second])
    assert view.side == 170 + 2 * 8
    assert view.top <= 40 and view.top + view.side >= 210
    assert view.left <= 60 and view.left + view.side >= 190
    assert brain_view([np.zeros((20, 30), np.uint8)]).side == 20


def test_map_lightness_rises_in_even_steps():
    colours = overlay(np.linspace(0, 1, 256)[None])[0, :, :3]
    linear = (colours / 255.0) ** 2.2
    lightness = np.cbrt(linear @ [0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness[::8]) > 0).all()


def test_the_overlay_is_clear_where_nothing_is_suspected():
    rgba = overlay(np.array([[0.0, 0.05, 0.3, 1.0]]))
    assert rgba[0, :2, 3].tolist() == [0, 0]
    assert 0 < rgba[0, 2, 3] < rgba[0, 3, 3] < 255

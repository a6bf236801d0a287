"""`report.html`: the page of a run, in one file.

One decision: everything is inside. No script, no font, no request leaves the page, because it is read on clinical
machines without internet and mailed around. A page that asks no server cannot leak which patient was looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medad_core.facts.followup_rows import FollowUp, remarks, signed_text, volume_text
from medad_core.metrics import MetricRow
from medad_core.metrics.markdown import split_title
from medad_core.metrics.names import LEVELS, READING, SUBSETS, is_share, metric_name
from medad_core.metrics.printed import interval_text, value_text
from medad_core.report.colour import legend_gradient
from medad_core.report.environment import page_environment
from medad_core.report.figures import OUTLINE, View, brain_view, map_uri, outline_path, slice_uri
from medad_core.report.gallery import OUTCOMES, GalleryItem
from medad_core.report.reliability import Bin, radii
from medad_core.report.summary import CaseRow, RunSummary, main_split

_HEADLINES = (
    ("image", "map_auroc", "Slices ranked by the map", "AUROC, a slice with tumour above one without"),
    ("image", "p_yes_auroc", "Slices ranked by the LLM", "AUROC of p(yes)"),
    ("image", "verdict_balanced_accuracy", "Verdict of the LLM", "balanced accuracy; 0.5 is chance"),
    ("pixel", "map_auroc", "Pixels ranked by the map", "AUROC over all pixels"),
    ("pixel", "map_dice", "Overlap with the expert", "Dice over slices with tumour"),
    ("text", "location_exact_or_neighbour", "Location in the answer", "right or neighbouring cell, when yes is right"),
)
# Scores that the trivial detector can also produce: its value stands beside them.
_BESIDE_BRIGHTNESS = {("image", "map_auroc"), ("image", "p_yes_auroc")}
_CASES_SHOWN = 200


@dataclass(frozen=True)
class Headline:
    """A metric as a page begins with it; `baseline` says what the trivial detector reaches, where it can."""

    title: str
    what: str
    row: MetricRow
    baseline: str | None


@dataclass(frozen=True)
class _Card:
    """A gallery item with its pictures encoded; `width` and `height` of the whole picture and its `view`, in pixels."""

    item: GalleryItem
    key: str
    width: int
    height: int
    view: View
    image: str
    veil: str
    outline: str | None


def render_report(
    summary: RunSummary,
    rows: Sequence[MetricRow],
    gallery: Sequence[GalleryItem],
    cases: Sequence[CaseRow] = (),
    bins: Sequence[Bin] = (),
    followups: Sequence[FollowUp] = (),
) -> str:
    """The page as a string: UTF-8, self-contained, readable on a phone and on paper.

    `rows` as `evaluate` returns them, `gallery` in the order to show, `cases` as `case_rows` and `bins` as
    `reliability_bins` return them, `followups` in the order to show.
    """
    environment = page_environment(
        metric=metric_name,
        is_share=is_share,
        split=split_title,
        number=value_text,
        interval=interval_text,
        volume=volume_text,
        signed=signed_text,
        remarks=remarks,
    )
    split = main_split(rows)
    return environment.get_template("report.html.j2").render(
        summary=summary,
        split=split,
        splits=sorted({row.split for row in rows}, key=lambda name: (name != split, name)),
        rows=rows,
        levels=LEVELS,
        subsets=SUBSETS,
        headlines=headlines(rows, split),
        cases=cases[:_CASES_SHOWN],
        cases_left_out=max(0, len(cases) - _CASES_SHOWN),
        case_count=len(cases),
        slice_count=sum(case.slices for case in cases),
        yes_count=sum(case.yes_slices for case in cases),
        labelled=any(case.tumour_slices is not None for case in cases),
        outlined=any(item.mask is not None and item.mask.any() for item in gallery),
        groups=_groups(gallery),
        followups=followups[:_CASES_SHOWN],
        followups_left_out=max(0, len(followups) - _CASES_SHOWN),
        bins=list(zip(bins, radii(bins), strict=True)),
        reading=READING,
        legend=legend_gradient(),
        outline_colour=OUTLINE,
    )


def headlines(rows: Sequence[MetricRow], split: str) -> list[Headline]:
    """The metrics that a page begins with, as far as they are defined in `split`."""
    measured = {(row.level, row.metric): row for row in rows if row.split == split and row.value is not None}
    brightness = measured.get(("image", "brightness_auroc"))
    shown = []
    for level, metric, title, what in _HEADLINES:
        row = measured.get((level, metric))
        if row is not None:
            baseline = brightness if (level, metric) in _BESIDE_BRIGHTNESS else None
            text = None if baseline is None else f"brightness alone: {value_text(baseline.value)}"
            shown.append(Headline(title, what, row, text))
    return shown


def _groups(gallery: Sequence[GalleryItem]) -> list[tuple[str, str, list[_Card]]]:
    """(outcome, heading, cards) of each outcome present, in the order of `OUTCOMES`."""
    images: dict[tuple[int, ...], list[np.ndarray]] = defaultdict(list)
    for item in gallery:
        images[item.image.shape].append(item.image)
    views = {shape: brain_view(of_shape) for shape, of_shape in images.items()}
    cards: dict[str, list[_Card]] = {outcome: [] for outcome in OUTCOMES}
    for number, item in enumerate(gallery):
        cards[item.outcome].append(_card(item, f"s{number}", views[item.image.shape]))
    return [(outcome, title, cards[outcome]) for outcome, title in OUTCOMES.items() if cards[outcome]]


def _card(item: GalleryItem, key: str, view: View) -> _Card:
    height, width = item.image.shape
    outline = None if item.mask is None else outline_path(item.mask)
    return _Card(item, key, width, height, view, slice_uri(item.image), map_uri(item.anomaly_map), outline)

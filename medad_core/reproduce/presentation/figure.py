"""`figure.png`: the main numbers with their intervals, as a forest plot.

One decision: patients and phantoms have panels of their own and share the scale, so that they can be compared by eye
and never be taken for each other. A row that failed keeps its place.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import product

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medad_core.metrics.printed import value_text
from medad_core.reproduce.presentation.sheet import AUROC, BALANCED, MAIN, Column, Line, Sheet
from medad_core.reproduce.presentation.words import RULES, bracketed, heading
from medad_core.reproduce.schema import PHANTOMS, PROPOSED

_COLOURS = {"paper": "#34495e", "baseline": "#b0620c", "ablation": "#7d6b9e"}
_HIGHLIGHT = "#0b6e68"
_BAND = "#e4f2f0"
_SOFT = "#6b7783"
_WIDTH = 8.4  # inches
_ROW = 0.27  # inches
_FRAME = 1.25  # inches
_DPI = 180


@dataclass(frozen=True)
class _Scale:
    """Where the axis of values begins, the same in every panel; it ends at 1, with room for the numbers beyond."""

    low: float
    high: float = 1.0
    room: float = 0.76

    @property
    def end(self) -> float:
        return self.high + self.room * (self.high - self.low)


def figure_png(sheet: Sheet) -> bytes:
    """PNG bytes, 1,512 pixels wide, with a pair of panels a group."""
    groups = sheet.groups
    rows = max(1, len(sheet.rows))
    figure = Figure(figsize=(_WIDTH, max(1, len(groups)) * (rows * _ROW + _FRAME)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.12)
    panels = figure.subplots(len(groups), 2, squeeze=False) if groups else []
    scale = _Scale(_lowest(sheet))
    for group, pair in zip(groups, panels, strict=True):
        title = f"{heading(group.name).lower()} ({group.tested_patients} {group.name}, {group.slices:,} slices)"
        for axes, column, text in zip(pair, (AUROC, BALANCED), (title, ""), strict=True):
            _panel(axes, sheet, group.name, column, scale)
            axes.set_title(
                text,
                loc="left",
                pad=10,
                fontsize=10,
                fontweight="bold",
                color="#6a3fb5" if group.name == PHANTOMS else "#17212b",
            )
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
    return out.getvalue()


def _lowest(sheet: Sheet) -> float:
    values = []
    for group, row, column in product(sheet.groups, sheet.rows, (AUROC, BALANCED)):
        line = sheet.find(group.name, row.name, column)
        if line is not None:
            values += [value for value in (line.value, line.ci_low) if value is not None]
    return max(0.0, min(0.4, *values, 1.0) - 0.03)


def _panel(axes: Axes, sheet: Sheet, group: str, column: Column, scale: _Scale) -> None:
    for place, row in enumerate(sheet.rows):
        colour = _HIGHLIGHT if row.name == PROPOSED else _COLOURS[row.kind]
        if row.name == PROPOSED:
            axes.axhspan(place - 0.5, place + 0.5, color=_BAND, zorder=0)
        if place and row.kind != sheet.rows[place - 1].kind:
            axes.axhline(place - 0.5, color="#c9d0d7", linewidth=0.8)
        _mark(axes, place, sheet.find(group, row.name, column), sheet.failed(row.name), colour, scale)
    axes.axvline(0.5, color=_SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    _dress(axes, sheet, column, scale)


def _mark(axes: Axes, place: int, line: Line | None, failed: str | None, colour: str, scale: _Scale) -> None:
    text = {"fontsize": 7.5, "va": "center"}
    if line is None or line.value is None:
        axes.text(scale.high + 0.02, place, "failed" if failed else "undefined", color=_SOFT, style="italic", **text)
        return
    if line.ci_low is not None and line.ci_high is not None:
        axes.plot(
            [line.ci_low, line.ci_high], [place, place], color=colour, linewidth=2, solid_capstyle="butt", zorder=2
        )
    axes.plot(
        line.value,
        place,
        marker="s" if colour == _HIGHLIGHT else "o",
        markersize=6,
        color=colour,
        zorder=3,
        clip_on=False,
    )
    value = value_text(line.value) + bracketed(line.ci_low, line.ci_high)
    axes.text(scale.high + 0.02, place, value, color=colour, **text)


def _dress(axes: Axes, sheet: Sheet, column: Column, scale: _Scale) -> None:
    axes.set_xlim(scale.low, scale.end)
    every = 1 if scale.high - scale.low <= 0.6 else 2  # tenths; closer, they would run into each other
    axes.set_xticks([tick / 10 for tick in range(0, 11, every) if scale.low <= tick / 10 <= scale.high])
    named = column is AUROC  # the panel beside it has the same rows
    axes.set_yticks(
        range(len(sheet.rows)) if named else [], [row.title for row in sheet.rows] if named else [], fontsize=8.5
    )
    axes.set_ylim(len(sheet.rows) - 0.5, -0.5)
    for label, row in zip(axes.get_yticklabels(), sheet.rows, strict=False):
        label.set(
            color=_HIGHLIGHT if row.name == PROPOSED else _COLOURS[row.kind],
            fontweight="bold" if row.name == PROPOSED else "normal",
        )
    axes.tick_params(axis="x", labelsize=8, color=_SOFT)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set(bounds=(scale.low, scale.high), color=_SOFT)
    rule = f"by {RULES[sheet.facts.rule]}, or the LLM's answer" if column.rule == MAIN else ""
    axes.set_xlabel(f"{column.title} (dashed: chance, 0.5)\n{rule}", fontsize=8.5, loc="left")

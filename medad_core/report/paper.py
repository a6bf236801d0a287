"""One slice as a figure for print: the slice, the expert's outline, the map, and what was asked and answered.

One decision: what the language model wrote stands in quotation marks below the pictures, apart from everything that is
computed, and a phantom is called one within the figure. Source: figures 2 and 3 of the paper (medad_core/README.md,
"Papers").
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medad_core.media import visible
from medad_core.report.gallery import GalleryItem

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

FORMATS = (".png", ".svg", ".pdf")
DPI = 300
BAR_MM = 50
_COLOURS = "RdBu_r"
_FAINT = 0.08  # below this probability the anatomy shows unveiled
_OUTLINE = "#5fd4c4"


def write_figure(
    path: Path, item: GalleryItem, question: str, spacing_mm: tuple[float, float, float], phantom: bool
) -> None:
    """Draw a slice to `path` (.png with 300 dpi, .svg or .pdf). `spacing_mm` is that of (row, column, slice).

    Raises OSError where the file cannot be written.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    titles = ["slice", *(["expert outline"] if item.mask is not None else []), "anomaly map"]
    with plt.rc_context({"svg.hashsalt": "medad", "svg.fonttype": "none", "text.parse_math": False}):
        figure, axes = plt.subplots(1, len(titles), figsize=(2.6 * len(titles) + 0.5, 3.5), layout="constrained")
        for axis, title in zip(axes, titles, strict=True):
            axis.set_title(title, fontsize=9)
        shown = draw_panels(axes, item, spacing_mm)
        bar = figure.colorbar(shown, ax=axes[-1], fraction=0.045, pad=0.02)
        bar.set_label("anomaly probability", fontsize=7)
        bar.ax.tick_params(labelsize=7)
        figure.supxlabel(_words(item, question, phantom, 34 * len(titles)), fontsize=8, x=0.02, ha="left", ma="left")
        figure.savefig(path, dpi=DPI, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def draw_panels(axes: Sequence[Axes], item: GalleryItem, spacing_mm: tuple[float, float, float]) -> AxesImage:
    """Draw slice, outline (the middle one of three axes) and map, with letters of direction and a scale bar.

    Returns the map, for a bar of its colours. The outline is on the map too.
    """
    aspect = spacing_mm[0] / spacing_mm[1]
    for axis in axes:
        axis.imshow(item.image, cmap="gray", vmin=0, vmax=255, aspect=aspect)
        axis.axis("off")
        _orient(axis, item.image.shape)
        if axis is not axes[0] and item.mask is not None and item.mask.any():
            axis.contour(item.mask, [0.5], colors=_OUTLINE, linewidths=0.8)
    veil = (item.anomaly_map > _FAINT) * 0.6
    _scale(axes[0], item.image.shape, spacing_mm[1])
    return axes[-1].imshow(item.anomaly_map, cmap=_COLOURS, vmin=0, vmax=1, alpha=veil, aspect=aspect)


def _orient(axis: Axes, shape: tuple[int, ...]) -> None:
    """The patient's right is on the left of the picture."""
    height, width = shape
    style = {"color": "white", "fontsize": 7, "ha": "center", "va": "center"}
    axis.text(0.03 * width, height / 2, "R", **style)
    axis.text(0.97 * width, height / 2, "L", **style)
    axis.text(width / 2, 0.03 * height, "A", **style)
    axis.text(width / 2, 0.97 * height, "P", **style)


def _scale(axis: Axes, shape: tuple[int, ...], column_mm: float) -> None:
    height, width = shape
    length = BAR_MM / column_mm
    axis.plot([0.04 * width, 0.04 * width + length], [0.95 * height] * 2, color="white", linewidth=1.5)
    axis.text(
        0.04 * width + length / 2, 0.925 * height, f"{BAR_MM} mm", color="white", fontsize=6, ha="center", va="bottom"
    )


def _words(item: GalleryItem, question: str, phantom: bool, width: int) -> str:
    what = "PHANTOM, drawn by a program. Not a patient." if phantom else "For research, not a medical device."
    score = "–" if item.anomaly_score is None else f"{item.anomaly_score:.3f}"
    p_yes = "–" if item.p_yes is None else f"{item.p_yes:.3f}"
    lines = [
        f"Question: {question}",
        f"The language model wrote: “{item.answer or ''}” (p(yes) {p_yes})",
        f"{item.case_id}, slice {item.slice_index}; score of the map {score}. {what}",
    ]
    return "\n".join(textwrap.fill(visible(line), width) for line in lines)

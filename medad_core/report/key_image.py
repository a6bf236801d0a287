"""The key image of a report: slice, outline of the mask where there is one, and map, with letters and a scale bar.

One decision: there is no word in the picture, so it is the same in every language; what it shows stands below it.
"""

from __future__ import annotations

import io
from dataclasses import replace

from medad_core.report.figures import brain_view
from medad_core.report.gallery import GalleryItem
from medad_core.report.paper import draw_panels

_DPI = 150
_SIDE_INCHES = 2.5


def key_image(item: GalleryItem, spacing_mm: tuple[float, float, float]) -> bytes:
    """A PNG of the part of a slice that the brain lies in. `spacing_mm` is that of (row, column, slice)."""
    # Without pyplot, which keeps the figures of all threads in one list.
    from matplotlib.figure import Figure

    item = _cropped(item)
    panels = 2 if item.mask is None else 3
    figure = Figure(figsize=(_SIDE_INCHES * panels + 0.45, _SIDE_INCHES), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.03, wspace=0.01)
    axes = figure.subplots(1, panels)
    shown = draw_panels(axes, item, spacing_mm)
    bar = figure.colorbar(shown, ax=axes[-1], fraction=0.05, pad=0.02, ticks=[0, 0.5, 1])
    bar.ax.tick_params(labelsize=7)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _cropped(item: GalleryItem) -> GalleryItem:
    view = brain_view([item.image])
    part = (slice(view.top, view.top + view.side), slice(view.left, view.left + view.side))
    mask = None if item.mask is None else item.mask[part]
    return replace(item, image=item.image[part], mask=mask, anomaly_map=item.anomaly_map[part])

"""A sheet of thumbnails: one slice of every case with the outline of its mask, to be looked at before screening."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medad_core.data.cases import Case
from medad_core.data.read import read_slices
from medad_core.data.source import settle_case
from medad_core.errors import CaseError, InputError
from medad_core.media import visible

if TYPE_CHECKING:
    from medad_core.config import DataSettings

MOST = 60
_COLUMNS = 6
_COLOURS = {"use": "black", "warn": "darkorange", "refuse": "red"}


def write_sheet(path: str | Path, cases: Sequence[Case], verdicts: dict[str, str], settings: DataSettings) -> int:
    """Draw at most MOST cases, those with a warning or a refusal first; returns how many are drawn.

    Each picture is the middle slice of the range, or the slice with the largest tumour, in radiological convention.
    `verdicts` are by case_id: use, warn or refuse.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    order = {"refuse": 0, "warn": 1, "use": 2}
    chosen = sorted(cases, key=lambda case: (order[verdicts.get(case.case_id, "use")], case.case_id))[:MOST]
    rows = max(1, -(-len(chosen) // _COLUMNS))
    figure, axes = plt.subplots(rows, _COLUMNS, figsize=(2 * _COLUMNS, 2.2 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, case in zip(axes.flat, chosen, strict=False):
        verdict = verdicts.get(case.case_id, "use")
        axis.set_title(_short(case.case_id), fontsize=7, color=_COLOURS[verdict], parse_math=False)
        _draw(axis, case, settings)
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return len(chosen)


def _draw(axis: object, case: Case, settings: DataSettings) -> None:
    try:
        slices = read_slices(settle_case(case, settings), settings)
    except (CaseError, InputError):
        axis.text(0.5, 0.5, "refused", ha="center", va="center", color="red", fontsize=8)
        return
    sizes = np.zeros(len(slices.images)) if slices.masks is None else slices.masks.sum(axis=(1, 2))
    index = int(sizes.argmax()) if sizes.any() else len(sizes) // 2
    axis.imshow(slices.images[index], cmap="gray", vmin=0, vmax=255)
    if sizes.any():
        axis.contour(slices.masks[index], [0.5], colors="yellow", linewidths=0.7)
    axis.text(2, 8, f"R  {slices.slice_index[index]}", color="white", fontsize=6, va="top")


def _short(text: str, longest: int = 26) -> str:
    text = visible(text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"

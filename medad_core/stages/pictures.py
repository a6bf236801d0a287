"""Slices and maps of a run to what is drawn of one slice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from medad_core.errors import UsageError
from medad_core.llm.questions import PRESENCE, Question
from medad_core.models.decoder import render_map
from medad_core.report import GalleryItem
from medad_core.report.paper import write_figure
from medad_core.run.run import Run
from medad_core.stages.rows import bits_of, grids_of, images_of, windows_of
from medad_core.store import join, read_table
from medad_core.store.files import explained

PREDICTIONS_FILE = "predictions.parquet"


def gallery_item(run: Run, row: Mapping[str, Any]) -> GalleryItem:
    """What is drawn of the slice of a row of predictions. Raises StoreError."""
    return item_of(run.stage("slices").read_case(row["case_id"]), run.stage("maps").read_case(row["case_id"]), row)


def item_of(slices: pa.Table, maps: pa.Table, row: Mapping[str, Any]) -> GalleryItem:
    """What is drawn of the slice of a row of predictions, from the slices and maps of its case."""
    place = slices["slice_index"].to_pylist().index(row["slice_index"])
    one_slice = slices.slice(place, 1)
    image = images_of(one_slice)[0]
    mask = bits_of(one_slice.to_pylist()[0], "mask")
    one_map = maps.slice(place, 1)
    windows = windows_of(one_map)
    anomaly_map = render_map(grids_of(one_map)[0], *image.shape, None if windows is None else windows[0])
    return GalleryItem.of(row, image, mask, anomaly_map)


def draw_slice(run: Run, case_id: str, slice_index: int, path: Path) -> None:
    """Draw one slice of a run with its answer to `path`.

    Raises UsageError for a slice that the run does not have, StoreError where there are no predictions yet or the file
    cannot be written.
    """
    rows = read_table(join(run.uri, PREDICTIONS_FILE)).to_pylist()
    own = [row for row in rows if row["case_id"] == case_id]
    row = next((row for row in own if row["slice_index"] == slice_index), None)
    if row is None:
        numbers = [row["slice_index"] for row in own]
        has = f"it has slices {min(numbers)} to {max(numbers)}" if own else "the run has no such case"
        raise UsageError(f"{case_id}, slice {slice_index}: {has}")
    spacing_mm = run.stage("slices").read_case(case_id)["spacing_mm"][0].as_py()
    phantom = next(member.phantom for member in run.cohort.members if member.case_id == case_id)
    with explained("write", str(path)):
        write_figure(path, gallery_item(run, row), Question(PRESENCE).worded(), tuple(spacing_mm), phantom)

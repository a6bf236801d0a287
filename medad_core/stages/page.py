"""Results and stage files to the pages of a run: `report/index.html`, and `report/cases/NAME.html` for every case.

One decision: numbers are read from the results, pictures from the stages; of the slices, the brightness alone is
computed again, for its curve. A case is written
again only if what its page is made of has changed, the list of cases every time; so a writer that was killed is
completed by the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from medad_core.errors import StoreError
from medad_core.media import file_name, read_csv
from medad_core.metrics import MetricRow, metric_rows, slice_brightness
from medad_core.report import main_split
from medad_core.report.case import CaseReport
from medad_core.report.case_view import case_script, inputs_of, named_inputs, render_case_page
from medad_core.report.curves import Curves, curves
from medad_core.report.index_page import render_index, worklist_script
from medad_core.report.viewer import Volumes, case_volumes, picture_axes
from medad_core.report.worklist_rows import page_rows
from medad_core.run import rejected
from medad_core.run.run import Run
from medad_core.stages.case_results import RunResults
from medad_core.stages.evaluate import TABLE_FILE, reliability, summary_of
from medad_core.stages.facts import WORKLIST_FILE, places_of
from medad_core.stages.page_files import CASES_FOLDER, INDEX_FILE, LIST_FILE, link_pages, page_names, remove_pages
from medad_core.stages.rows import bits_of, brains_of, images_of, rendered_maps
from medad_core.store import join, write_text
from medad_core.store.files import read_bytes, remove
from medad_core.store.listing import size_of

_SEEN = ("slices", "maps")  # the stages that a viewer shows


class CasePages:
    """Writes the pages of a run's cases, in the folder that `prepare_pages` made; what they share is read once."""

    def __init__(self, run: Run) -> None:
        """Raises StoreError where a stage was never planned."""
        self.run = run
        self._places = places_of(run)
        self._parts = {name: run.stage(name).records() for name in _SEEN}

    def write(self, report: CaseReport) -> bool:
        """Write the page of the case of a report, and its volumes; False where it is there and nothing has changed.

        Raises StoreError, CaseError.
        """
        stem = join(self.run.uri, CASES_FOLDER, file_name(report.case_id))
        parts = [self._part_sha256(name, report.case_id) for name in _SEEN]
        inputs = inputs_of(report, *parts, repr(self._places.get(report.case_id)))
        page = read_bytes(f"{stem}.html")
        if page is not None and named_inputs(page.decode()) == inputs and size_of(f"{stem}.js") is not None:
            return False
        remove(f"{stem}.html")
        write_text(f"{stem}.js", case_script(report, self._volumes(report)))
        write_text(f"{stem}.html", render_case_page(report, inputs))
        return True

    def _part_sha256(self, stage: str, case_id: str) -> str:
        return self._parts[stage][self.run.stage(stage).plan().part_of[case_id]].sha256

    def _volumes(self, report: CaseReport) -> Volumes:
        slices = self.run.stage("slices").read_case(report.case_id)
        maps = self.run.stage("maps").read_case(report.case_id)
        images = images_of(slices)
        masks = [bits_of(row, "mask") for row in slices.select(["height", "width", "mask"]).to_pylist()]
        axes = picture_axes(tuple(slices["spacing_mm"][0].as_py()), self._places.get(report.case_id))
        return case_volumes(
            images=images,
            maps=rendered_maps(maps, *images.shape[1:]),
            masks=None if masks[0] is None else np.stack(masks),
            threshold=report.threshold,
            first_slice=report.first_slice,
            look_at=report.look_at,
            to_ras=axes,
        )


def write_index(run: Run) -> str:
    """Write the list of the cases of a run; returns its path. Raises StoreError where there are no results yet.

    A case is linked if it has a page. Pages of cases that the run has no results of are removed.
    """
    results = RunResults(run)
    remove_pages(run.uri, results.cases)
    metrics = metric_rows(results.table(TABLE_FILE))
    failed = rejected.rejected_cases(run.stages.values())
    phantoms = frozenset(member.case_id for member in run.cohort.members if member.phantom)
    predictions = results.predictions.to_pandas(integer_object_nulls=True)
    rows = page_rows(_worklist(run), results.cases, predictions, phantoms, failed, page_names(run.uri))
    write_text(join(run.uri, LIST_FILE), worklist_script(rows))
    used = {case["threshold"] for case in results.cases.values()}  # `medad evaluate` may have been given another
    summary = summary_of(run, failed, [])
    page = render_index(
        replace(summary, map_threshold=used.pop()) if used else summary,
        metrics,
        rows,
        _curves(run, predictions, metrics),
        reliability(metrics, predictions),
    )
    write_text(join(run.uri, INDEX_FILE), page)
    link_pages(run.uri)
    return join(run.uri, INDEX_FILE)


def _worklist(run: Run) -> list[dict[str, str]]:
    content = read_bytes(join(run.uri, WORKLIST_FILE))
    if content is None:
        raise StoreError(f"{run.uri} has no {WORKLIST_FILE}; `medad evaluate {run.uri}` makes it again")
    return list(read_csv(content.decode()))


def _curves(run: Run, predictions: pd.DataFrame, metrics: Sequence[MetricRow]) -> Curves:
    split = main_split(metrics)
    rows = predictions if split == "all" else predictions[predictions["split"] == split]
    labelled = rows.dropna(subset=["label"])
    brightness = {}
    for case_id in labelled["case_id"].unique():
        slices = run.stage("slices").read_case(case_id, ["case_id", "slice_index", "height", "width", "image", "brain"])
        numbers = slices["slice_index"].to_pylist()
        for at, image, brain in zip(numbers, images_of(slices), brains_of(slices), strict=True):
            brightness[case_id, at] = slice_brightness(image, brain)
    return curves(labelled, brightness, [row for row in metrics if row.split == split])

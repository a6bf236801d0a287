"""The results of an experiment: `table.parquet` and everything printed from it, made from unit files alone.

One decision: no model is loaded here, so the table can be made again at any time, with other intervals or other
rules, in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medad_core.config import Settings, settings_to_yaml
from medad_core.data.names import patient_of
from medad_core.reproduce.experiment import Experiment, open_experiment
from medad_core.reproduce.presentation import Facts, GalleryRow, GallerySlice, GroupFacts, ThresholdNote, write_results
from medad_core.reproduce.schema import ROWS
from medad_core.reproduce.table import RowOfGroup, Table, make_table
from medad_core.training.features import TrainingCase


@dataclass(frozen=True)
class Results:
    """Where the results are; rows that failed and cases left out, with reasons."""

    table: str
    text: str
    figure: str
    gallery: str
    failed: tuple[tuple[str, str], ...]
    rejected: tuple[tuple[str, str], ...]


def write(out: str, settings: Settings) -> Results:
    """Make the table of an experiment anew. Raises StoreError where there is no experiment."""
    experiment = open_experiment(out)
    table = make_table(out, experiment, settings)
    written = write_results(
        out,
        table.lines,
        _facts(experiment, table, settings),
        list(_gallery(experiment, table, experiment.load(out), settings)),
    )
    return Results(
        written.table, written.text, written.figure, written.gallery, tuple(table.failed.items()), experiment.rejected
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
        yield "Every row learns from the training patients and the training phantoms together; thresholds and numbers are of each kind alone."
    if len(experiment.folds) > 1:
        yield "Each fold has models of its own: curves rank slices within folds only, each fold weighing as many pairs as it has, and decisions use each fold's own threshold."
    if len(settings.reproduce.seeds) > 1:
        yield "A difference to the proposed scheme is taken over the seeds that both rows have; DeLong's test takes the first of them."
    for row in (row for row in table.rows if row.group == experiment.groups[0] and row.first.training_errors):
        errors = [error for seed in row.seeds.values() for error in seed.training_errors]
        warning = (
            "; at 1 or more, that picture would have done as well: a small budget, not the method, is measured"
            if max(errors) >= 1
            else ""
        )
        yield f"{ROWS[row.row].title}: its training loss ended at {min(errors):.2f} to {max(errors):.2f} of that of the mean training picture{warning}."
    if experiment.rejected:
        yield (
            f"{len(experiment.rejected)} cases could not be used: "
            + "; ".join(f"{case_id}, {reason}" for case_id, reason in experiment.rejected)
            + "."
        )


def _group_facts(experiment: Experiment, table: Table, group: str) -> GroupFacts:
    """Patients in each part of the folds, and what was tested."""
    cases = [case.case_id for case in experiment.cases if experiment.group_of(case.case_id) == group]
    tested = next((row.first.frame for row in table.rows if row.group == group), None)
    return GroupFacts(
        name=group,
        patients=len({patient_of(case) for case in cases}),
        tested_patients=0 if tested is None else tested["case_id"].map(patient_of).nunique(),
        slices=0 if tested is None else len(tested),
        tumour_free=0 if tested is None else int((tested["label"] == 0).sum()),
        dealt=tuple(
            tuple(
                len({patient_of(case) for case in getattr(fold, part) if case in cases})
                for part in ("train", "validation", "test")
            )
            for fold in experiment.folds
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
        found = next(
            (
                decision
                for decision in row.first.units.decisions
                if decision.rule in (settings.reproduce.rule, "answer", "always")
            ),
            None,
        )
        if found is not None:
            label = row.first.units.label
            decided = found.settled(label)
            errors = [int(((label == true) & (decided == said)).sum()) for true, said in ((0, 1), (1, 0))]
            yield GalleryRow(
                row.row,
                ROWS[row.row].title,
                row.group,
                found.rule,
                tuple(_worst(row, found.rule, decided, cases, settings.reproduce.gallery)),
                *errors,
            )


def _worst(
    row: RowOfGroup, rule: str, decided: np.ndarray, cases: dict[str, TrainingCase], count: int
) -> Iterator[GallerySlice]:
    seed = row.first
    limits = {
        item.fold: item.threshold.value
        for item in seed.thresholds
        if (item.level, item.threshold.rule) == ("image", rule)
    }
    for kind, label, said, ascending in (("false positive", 0, 1, False), ("false negative", 1, 0, True)):
        wrong = seed.frame[(seed.frame["label"] == label) & (decided == said)].sort_values(
            "score", ascending=ascending, kind="stable"
        )
        for item in wrong.head(count).itertuples():
            case = cases[item.case_id]
            at = int(item.slice_index - case.slice_index[0])
            thumbnail = seed.thumbnails.get((item.case_id, item.slice_index))
            yield GallerySlice(
                kind=kind,
                case_id=item.case_id,
                slice_index=item.slice_index,
                score=item.score,
                threshold=limits.get(item.fold),
                label=label,
                area_mm2=item.area_mm2,
                image=np.asarray(case.images[at]),
                mask=np.asarray(case.masks[at]),
                anomaly_map=None if thumbnail is None else _enlarged(thumbnail, case.images.shape[1:]),
                answer=item.answer if isinstance(item.answer, str) else None,  # pandas reads null as NaN
            )


def _enlarged(thumbnail: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A thumbnail at half size as a map (H, W) float in [0, 1]."""
    return np.repeat(np.repeat(thumbnail, 2, axis=0), 2, axis=1)[: shape[0], : shape[1]].astype(np.float32) / 255

"""Stage files and results to the report of a case (`medad_core.report.case`).

One decision: nothing is measured or answered anew. Numbers are those of the results, answers those of the run; only
what a statement is compared with is looked up in the map and the mask of its slice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from medad_core.data.findings import TumourFinding, find
from medad_core.errors import WeightsError
from medad_core.facts.worklist import Screened as Tally
from medad_core.facts.worklist import finding_of
from medad_core.llm.questions import questions_of
from medad_core.media import file_name
from medad_core.models.weights import converter_facts, weights_folder
from medad_core.report import GalleryItem
from medad_core.report.case import SHOWN, CaseReport, KeySlice, LesionFacts, Lesions, Named, Screened
from medad_core.report.impression import impression
from medad_core.report.words import Words, words_of
from medad_core.run.info import read_run_info
from medad_core.run.run import Run
from medad_core.stages.agreement import SliceEvidence, statements_of
from medad_core.stages.case_results import CaseResults, Rows, RunResults
from medad_core.stages.caveats import learned
from medad_core.stages.facts import screened_of
from medad_core.stages.pictures import item_of
from medad_core.stages.rows import bits_of
from medad_core.store import LESIONS

_OF_TABLE = {"case_id", "source"}  # columns of LESIONS that say which lesion it is, and not what it is like


@dataclass(frozen=True)
class Drafted:
    """A report, and what is drawn of its first key slices. `spacing_mm` is that of (row, column, slice)."""

    report: CaseReport
    items: tuple[GalleryItem, ...]
    spacing_mm: tuple[float, float, float]


def case_report_of(run: Run, case_id: str) -> CaseReport:
    """The report of a case in the language of the run's settings.

    Raises StoreError where the run has no results yet, CaseError for a rejected case, UsageError for an unknown one.
    """
    return CaseReporter(run).draft(case_id).report


class CaseReporter:
    """Makes the reports of a run's cases; what all of them share is read once."""

    def __init__(self, run: Run) -> None:
        """Raises StoreError where the run has no results yet."""
        self.run = run
        self.results = RunResults(run)
        self.words = words_of(run.settings.report.language)
        self._members = {member.case_id: member for member in run.cohort.members}
        self._learned = learned(run.settings)
        self._asked = tuple(question.name for question in questions_of(run.settings.llm.questions))
        self._further = _further_questions(run)
        made_with = read_run_info(run.uri).versions
        self._versions = tuple(Named(role=package, name=number) for package, number in made_with.items())
        self._fingerprint = run.stage("answers").plan().fingerprint_sha256

    def draft(self, case_id: str) -> Drafted:
        """The report of a case. Raises CaseError for a rejected case, UsageError for an unknown one, StoreError."""
        results = self.results.of(case_id)
        slices = self.run.stage("slices").read_case(case_id)
        maps = self.run.stage("maps").read_case(case_id)
        found = _lesions(results.case, results.lesions["map"], "")
        tally = screened_of(results.frame)
        widest = _widest(found, tally)
        items = {at: item_of(slices, maps, results.predictions[at]) for at in widest}
        key_slices = tuple(
            _key_slice(results, found, item, _row_of(slices, at), widest[at], number < SHOWN)
            for number, (at, item) in enumerate(items.items())
        )
        report = self._report(results, found, tally, key_slices)
        shown = tuple(items.values())[:SHOWN]
        spacing_mm = tuple(slices["spacing_mm"][0].as_py())
        hashed = report.model_copy(update={"inputs_sha256": _hash_of(report, shown, spacing_mm, self.words)})
        return Drafted(hashed, shown, spacing_mm)

    def _report(
        self, results: CaseResults, found: Lesions, tally: Tally, key_slices: tuple[KeySlice, ...]
    ) -> CaseReport:
        case = results.case
        member = self._members[case["case_id"]]
        screened = Screened.model_validate(tally, from_attributes=True)
        ends = case["first_slice"], case["last_slice"]
        limits = case["threshold"], case["smallest_ml"]
        return CaseReport(
            language=self.words.language,
            cohort=Path(self.run.cohort.root).name,
            case_id=case["case_id"],
            patient=case["patient"],
            split=case["split"],
            phantom=member.phantom,
            first_slice=case["first_slice"],
            last_slice=case["last_slice"],
            threshold=case["threshold"],
            threshold_policy="fixed",
            smallest_ml=case["smallest_ml"],
            impression=impression(found, ends, limits, screened, key_slices, self.words),
            finding=finding_of(bool(found.each), screened.slices_yes > 0),
            look_at=key_slices[0].slice_index,
            found=found,
            true=None if case["lesions_true"] is None else _lesions(case, results.lesions["mask"], "_true"),
            regions_not_named=case["regions_not_named"],
            screened=screened,
            key_slices=key_slices,
            questions=self._asked,
            further_questions=self._further,
            warnings=results.warnings,
            caveats=self._learned.caveats,
            trained_on=self._learned.has_seen(member),
            models=_models(self.run),
            versions=self._versions,
            written_by=f"medad {version('medad')}",
            fingerprint=self._fingerprint,
            inputs_sha256="0" * 64,
        )


def _further_questions(run: Run) -> tuple[str, ...]:
    """Families that the weights have learned and the run did not ask; none where the weights are lost."""
    try:
        known = converter_facts(weights_folder(run.settings.models.weights)).questions
    except WeightsError:
        return ()
    asked = {question.family for question in questions_of(run.settings.llm.questions)}
    return tuple(family for family in known if family not in asked)


def _models(run: Run) -> tuple[Named, ...]:
    models = run.settings.models
    named = {
        "image encoder": models.encoder,
        "text encoder": models.text_encoder,
        "language model": run.settings.llm.model,
        "weights": models.weights,
    }
    return tuple(Named(role=role, name=name) for role, name in named.items())


def _lesions(case: Mapping[str, Any], rows: Rows, suffix: str) -> Lesions:
    columns = [name for name in LESIONS.names if name not in _OF_TABLE]
    each = tuple(LesionFacts(**{name: row[name] for name in columns}) for row in rows)
    together = {name: case[name + suffix] for name in Lesions.model_fields if name != "each"}
    return Lesions(**together, each=each)


def _widest(found: Lesions, tally: Tally) -> dict[int, tuple[int, ...]]:
    """The key slices, that of the largest lesion first, with the lesions that are widest there."""
    widest: dict[int, tuple[int, ...]] = {}
    for one in found.each:
        widest[one.widest_slice] = (*widest.get(one.widest_slice, ()), one.lesion)
    return widest or {tally.best_slice: ()}


def _row_of(slices: pa.Table, slice_index: int) -> Mapping[str, Any]:
    at = slices["slice_index"].to_pylist().index(slice_index)
    return slices.drop_columns(["image"]).slice(at, 1).to_pylist()[0]


def _key_slice(
    results: CaseResults,
    found: Lesions,
    item: GalleryItem,
    row: Mapping[str, Any],
    numbers: tuple[int, ...],
    shown: bool,
) -> KeySlice:
    """The key slice that `item` is drawn of, whose row of SLICES is `row`."""
    at = item.slice_index
    brain = bits_of(row, "brain")
    pixel_mm2 = row["spacing_mm"][0] * row["spacing_mm"][1]

    def finding(mask: np.ndarray | None) -> TumourFinding | None:
        return None if mask is None else find(mask, brain, pixel_mm2)

    evidence = SliceEvidence(
        found=finding(item.anomaly_map >= results.case["threshold"]),
        lesions=tuple(one for one in found.each if one.first_slice <= at <= one.last_slice),
        labelled=item.mask is not None,
        true=finding(item.mask),
        shape=item.image.shape,
        slice_index=at,
    )
    further = [question for question in results.questions if question["slice_index"] == at]
    return KeySlice(
        slice_index=at,
        lesions=numbers,
        anomaly_score=item.anomaly_score,
        p_yes=item.p_yes,
        statements=statements_of(results.predictions[at], further, evidence),
        picture=picture_name(results.case["case_id"], at) if shown else None,
    )


def picture_name(case_id: str, slice_index: int) -> str:
    """The file of a key image, beside the report."""
    return f"{file_name(case_id)}-slice-{slice_index:03d}.png"


def _hash_of(
    report: CaseReport, items: tuple[GalleryItem, ...], spacing_mm: tuple[float, float, float], words: Words
) -> str:
    """Hash of all that the files of a report are made of: what it says, its words, and the pictures it shows."""
    facts = [report.model_dump(mode="json"), spacing_mm, words.entries]
    content = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for item in items:
        for array in (item.image, item.mask, item.anomaly_map):
            if array is not None:
                content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()

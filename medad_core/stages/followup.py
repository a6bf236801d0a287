"""Maps of several examinations of a patient to the follow-up: `followup.parquet`, `followup_lesions.parquet`, and CSV.

One decision: what is compared comes from files of runs that are finished, so two examinations may be of one run or of
two batches of a cohort. A run in which nobody was examined twice has none of these files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from medad_core.data.place import Place
from medad_core.data.visits import Visit, in_order, visit_of
from medad_core.errors import StoreError
from medad_core.facts.followup import Seen, compare, why_apart
from medad_core.facts.followup_rows import (
    HEADS,
    NOTHING,
    NUMBERS,
    ON_GRID,
    WHEN,
    FollowUp,
    csv_rows,
    followup_table,
    followups_in,
    grid_columns,
    number_columns,
    pair_rows,
    pair_table,
    when_columns,
)
from medad_core.facts.lesions import Grid
from medad_core.media import write_csv
from medad_core.run.cohort import Member
from medad_core.run.rejected import Rejected
from medad_core.run.run import Run
from medad_core.stages.facts import CASES_FILE, places_of
from medad_core.stages.rows import brains_of, rendered_maps
from medad_core.store import join, read_table, write_table, write_text
from medad_core.store.files import read_bytes, remove

FOLLOWUP_FILE, PAIRS_FILE, FOLLOWUP_CSV = "followup.parquet", "followup_lesions.parquet", "followup.csv"
UNREAD, PRUNED = "maps cannot be read", "were removed by `medad prune`"
FOLLOWUP_FILES = (FOLLOWUP_FILE, PAIRS_FILE, FOLLOWUP_CSV)
Row = tuple[FollowUp, list[dict[str, Any]]]  # with its rows of FOLLOWUP_LESIONS


@dataclass(frozen=True)
class Examination:
    """A case that was screened: its row of CASES, and the run that holds it.

    `models` are equal for examinations of the same models and settings. `batch` is the number of the run in a cohort.
    """

    member: Member
    facts: Mapping[str, Any]
    run: Run
    models: str = ""
    batch: int | None = None

    @property
    def visit(self) -> Visit:
        """When it was."""
        return visit_of(self.member.case_id, self.member.visit, self.member.date)


@dataclass(frozen=True)
class Followed:
    """The follow-up of some patients: rows of FOLLOWUPS, and of FOLLOWUP_LESIONS."""

    rows: list[FollowUp] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)


def write_followup(run: Run, rejected: Sequence[Rejected]) -> list[FollowUp]:
    """Follow the patients of a run whose `cases.parquet` is written, and write the files. Raises StoreError."""
    members = {member.case_id: member for member in run.cohort.members}
    facts = read_table(join(run.uri, CASES_FILE)).to_pylist()
    seen = [Examination(members[row["case_id"]], row, run) for row in facts]
    reasons = {case_id: f"{stage}: {reason}" for case_id, stage, reason in rejected}
    reasons |= {member.case_id: member.rejected for member in members.values() if member.rejected}
    missing = [(members[case_id], reason) for case_id, reason in sorted(reasons.items()) if case_id in members]
    followed = follow(seen, missing)
    write_followed(run.uri, followed)
    return followed.rows


def read_followups(folder: str) -> list[FollowUp]:
    """The follow-up in the folder of a run or a cohort; none where there is none. Raises StoreError."""
    uri = join(folder, FOLLOWUP_FILE)
    return [] if read_bytes(uri) is None else followups_in(read_table(uri))


def is_unread(row: FollowUp) -> bool:
    """Whether maps could not be read that may be readable later: they are damaged, or the disk would not give them."""
    return row.compared == NUMBERS and (row.reason or "").startswith(UNREAD) and PRUNED not in (row.reason or "")


def write_followed(folder: str, followed: Followed) -> None:
    """Write the three files into `folder`, or remove those of earlier where there is nothing. Raises StoreError."""
    if not followed.rows:
        for name in FOLLOWUP_FILES:
            remove(join(folder, name))
        return
    write_table(join(folder, PAIRS_FILE), pair_table(followed.pairs))  # first: a row that is there has its lesions
    write_table(join(folder, FOLLOWUP_FILE), followup_table(followed.rows))
    write_text(join(folder, FOLLOWUP_CSV), write_csv(HEADS, csv_rows(followed.rows)))


def follow(
    examinations: Iterable[Examination], missing: Iterable[tuple[Member, str]] = (), known: Followed | None = None
) -> Followed:
    """The follow-up of every patient with several examinations; those `missing` are named with their reasons.

    Comparisons that `known` has, of the same batches and limits, are not made again. Raises StoreError.
    """
    of_patient: dict[str, list[Examination]] = defaultdict(list)
    absent: dict[str, list[tuple[Member, str]]] = defaultdict(list)
    for one in examinations:
        of_patient[one.member.patient_id].append(one)
    for member, reason in missing:
        absent[member.patient_id].append((member, reason))
    followed = Followed()
    comparing = _Comparing(known or Followed())
    for patient, own in sorted(of_patient.items()):
        if len(own) > 1:
            for row, pairs in comparing.rows_of(patient, own):
                followed.rows.append(row)
                followed.pairs.extend(pairs)
        for member, reason in absent.get(patient, ()):
            text = f"{member.case_id} is not compared ({reason})"
            followed.rows.append(FollowUp(patient, NOTHING, text, phantom=member.phantom))
    return followed


class _Comparing:
    """What is kept from one patient to the next: places of runs, and comparisons that are known."""

    def __init__(self, known: Followed) -> None:
        self.places: dict[str, dict[str, Place]] = {}
        self.known = {_key_of(row): row for row in known.rows if row.compared == ON_GRID}
        # Why voxels could not be compared; not being readable may pass.
        self.apart = {
            _key_of(row): row.reason
            for row in known.rows
            if row.compared == NUMBERS and row.reason and not row.reason.startswith(UNREAD)
        }
        self.pairs: dict[tuple[Any, Any], list[dict[str, Any]]] = defaultdict(list)
        for pair in known.pairs:
            self.pairs[pair["earlier"], pair["later"]].append(pair)

    def rows_of(self, patient: str, examinations: Sequence[Examination]) -> Iterator[Row]:
        """The rows of a patient; one that says why if the order of the examinations is not known."""
        visits = in_order([one.visit for one in examinations])
        if not visits.by:
            names = ", ".join(visit.case_id for visit in visits.visits)
            reason = f"the order of {names} is not known ({visits.reason}); give dates in data.patients"
            yield FollowUp(patient, NOTHING, reason, any(one.member.phantom for one in examinations)), []
            return
        by_case = {one.member.case_id: one for one in examinations}
        for pair in pairwise(visits.visits):
            earlier, later = (by_case[visit.case_id] for visit in pair)
            phantom = earlier.member.phantom or later.member.phantom
            when = when_columns(*pair, visits.by) | {"batch_earlier": earlier.batch, "batch_later": later.batch}
            yield self._row(FollowUp(patient, NOTHING, None, phantom, **when), earlier, later)

    def _row(self, row: FollowUp, earlier: Examination, later: Examination) -> Row:
        """`row`, which says when both were, with what is compared of them."""
        unequal = _unequal(earlier, later)
        if unequal:
            return replace(row, reason=unequal), []
        row = replace(row, compared=NUMBERS, **number_columns(earlier.facts, later.facts))
        known = self.known.get(_key_of(row))
        if known is not None:
            return replace(known, **{name: getattr(row, name) for name in WHEN}), self.pairs[row.earlier, row.later]
        if _key_of(row) in self.apart:
            return replace(row, reason=self.apart[_key_of(row)]), []
        try:
            seen = self._seen(earlier), self._seen(later)
        except StoreError as error:  # of an older batch; the night goes on
            return replace(row, reason=f"{UNREAD} ({error})"), []
        apart = why_apart(*seen)
        if apart:
            return replace(row, reason=apart), []
        comparison = compare(*seen, earlier.facts["smallest_ml"])
        first, last = comparison.slices.start, comparison.slices.stop - 1
        some = "" if seen[0].slices == seen[1].slices else f"only slices {first} to {last}, which both have"
        row = replace(row, compared=ON_GRID, reason=some or None, **grid_columns(comparison))
        return row, pair_rows(row, comparison.pairs)

    def _seen(self, one: Examination) -> Seen:
        """Map and brain of an examination. Raises StoreError where they were pruned, or are damaged."""
        maps = one.run.stage("maps")
        if maps.find_plan() is None:
            raise StoreError(f"those of batch {one.batch} {PRUNED}")
        if one.run.uri not in self.places:
            self.places[one.run.uri] = places_of(one.run)
        case_id = one.member.case_id
        slices = one.run.stage("slices").read_case(case_id, ["slice_index", "height", "width", "brain", "spacing_mm"])
        first = slices.slice(0, 1).to_pylist()[0]
        drawn = rendered_maps(maps.read_case(case_id), first["height"], first["width"])
        place = self.places[one.run.uri].get(case_id)
        grid = Grid(tuple(first["spacing_mm"]), first["slice_index"], place)
        return Seen(drawn >= one.facts["threshold"], brains_of(slices), grid)


def _unequal(earlier: Examination, later: Examination) -> str:
    """Why nothing of two examinations may be compared; empty where something may."""
    if earlier.models != later.models:
        return "they were screened with different models or settings"
    for name, what in (("threshold", "thresholds of the map"), ("smallest_ml", "sizes of the smallest lesion")):
        one, other = earlier.facts[name], later.facts[name]
        if one != other:
            return f"their {what} differ ({one:g} and {other:g}); run `medad evaluate` on one of their batches"
    return ""


def _key_of(row: FollowUp) -> tuple[Any, ...]:
    """What a comparison depends on, in a cohort."""
    return row.earlier, row.later, row.batch_earlier, row.batch_later, row.threshold, row.smallest_ml

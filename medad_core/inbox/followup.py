"""The follow-up of a cohort: patients who were examined more than once, in whichever batches.

One decision: two maps are compared once. What an earlier night compared is taken from the cohort's own files, because
the maps may be pruned since. Dates and visits are those that were known when a case was screened. Rows of patients of
whom nothing came since stay as they are (`lists.py` says when they may).
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medad_core.errors import ConfigError, StoreError
from medad_core.facts.followup_rows import FollowUp
from medad_core.inbox.batch import counting_of
from medad_core.inbox.records import Batch
from medad_core.run.cohort import Cohort, Member, cohort_of
from medad_core.run.run import Run
from medad_core.stages.facts import CASES_FILE
from medad_core.stages.followup import (
    PAIRS_FILE,
    Examination,
    Followed,
    follow,
    is_unread,
    read_followups,
    write_followed,
)
from medad_core.store import fingerprint_of, join, read_table
from medad_core.store.listing import at_once

log = logging.getLogger(__name__)
Cohorts = Mapping[int, Sequence[Member]]  # the members of each batch, by its number


def write_followup(folder: str, batches: Sequence[Batch], known: int, run_of: Callable[[int], str]) -> bool:
    """Follow the patients of all committed batches, and write the files of `stages.followup` into `folder`.

    A case counts with its newest content. The files there are those of the first `known` of the batches. Returns False
    if a batch is there and the disk would not give it. Raises StoreError.
    """
    cohorts, is_whole = _read_cohorts(batches, run_of)
    counting = counting_of(batches)
    members = {one.case_id: one for number, own in cohorts.items() for one in own if one.case_id in counting[number]}
    count = Counter(member.patient_id for member in members.values())
    again = {patient for patient, examinations in count.items() if examinations > 1}
    before = _read(folder)
    kept: list[FollowUp] = []
    if known and before is not None:
        later = _later_patients(batches[known:], cohorts, before.rows)
        kept = [row for row in before.rows if row.patient not in later]
        again &= later
    examinations: list[Examination] = []
    rejected: list[tuple[Member, str]] = []
    lost: list[tuple[Member, str]] = []
    for batch in batches:
        own = [last for last in counting[batch.number].values() if last.case_id in members]
        own = [last for last in own if members[last.case_id].patient_id in again]
        rejected += [(members[last.case_id], str(last.reason)) for last in own if last.state == "rejected"]
        screened = {last.case_id: members[last.case_id] for last in own if last.state == "screened"}
        found, is_read = _examinations(batch, screened, run_of(batch.number))
        is_whole = is_whole and is_read
        examinations += found
        lost += [(one, f"batch {batch.number} was not evaluated") for one in _without(screened, found)]
    write_followed(folder, _joined(kept, before, follow(examinations, [*rejected, *lost], before)))
    return is_whole


def _read_cohorts(batches: Sequence[Batch], run_of: Callable[[int], str]) -> tuple[Cohorts, bool]:
    """The cohorts of the batches, and whether the disk gave them; one damaged file must not stop every night."""

    def read(batch: Batch) -> Cohort | StoreError:
        try:
            return cohort_of(run_of(batch.number))
        except StoreError as error:
            return error

    cohorts, is_whole = {}, True
    for batch, cohort in zip(batches, at_once(read, batches, run_of(1)), strict=True):
        if isinstance(cohort, StoreError):
            log.warning("%s; the patients of batch %d are not followed", cohort, batch.number)
            is_whole = is_whole and not cohort.may_pass
        else:
            cohorts[batch.number] = cohort.members
    return cohorts, is_whole


def _later_patients(later: Sequence[Batch], cohorts: Cohorts, before: Sequence[FollowUp]) -> set[str]:
    """The patients of whom the batches `later` have, or replace, something, and those to be compared again."""
    cases = {screening.case_id for batch in later for screening in batch.screenings}
    patients = {member.patient_id for members in cohorts.values() for member in members if member.case_id in cases}
    return patients | {row.patient for row in before if is_unread(row)}


def _examinations(batch: Batch, members: Mapping[str, Member], uri: str) -> tuple[list[Examination], bool]:
    """The cases of a batch with their facts, none where an earlier version evaluated it; whether the disk gave them."""
    if not members:
        return [], True
    try:
        rows = read_table(join(uri, CASES_FILE)).to_pylist()
        run = Run.reopen(uri)
    except (StoreError, ConfigError) as error:
        log.warning("%s; run `medad evaluate %s` to make it again", error, uri)
        return [], not error.may_pass
    models = fingerprint_of(batch.fingerprint)
    found = [row for row in rows if row["case_id"] in members]
    return [Examination(members[row["case_id"]], row, run, models, batch.number) for row in found], True


def _without(members: Mapping[str, Member], found: Sequence[Examination]) -> list[Member]:
    """The members that no examination is of, by name."""
    return [members[case_id] for case_id in sorted(members.keys() - {one.member.case_id for one in found})]


def _joined(kept: Sequence[FollowUp], before: Followed | None, made: Followed) -> Followed:
    """The rows that stay and those that were made, by patient, with their lesions."""
    pairs: dict[tuple[Any, Any], list[dict[str, Any]]] = defaultdict(list)
    of_kept = {(row.earlier, row.later) for row in kept}
    stay = [pair for pair in before.pairs if (pair["earlier"], pair["later"]) in of_kept] if before is not None else []
    for pair in (*stay, *made.pairs):
        pairs[pair["earlier"], pair["later"]].append(pair)
    rows = sorted([*kept, *made.rows], key=lambda row: row.patient)
    return Followed(rows, [pair for row in rows for pair in pairs[row.earlier, row.later]])


def _read(folder: str) -> Followed | None:
    """What the cohort's files have; None if they cannot be read."""
    try:
        rows = read_followups(folder)
        return Followed(rows, read_table(join(folder, PAIRS_FILE)).to_pylist()) if rows else Followed()
    except StoreError as error:
        log.warning("%s; patients are compared again", error)
        return None

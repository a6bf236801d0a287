"""The follow-up of a cohort: patients who were examined more than once, in whichever batches.

One decision: two maps are compared once. What an earlier night compared is taken from the cohort's own files, because
the maps may be pruned since. Dates and visits are those that were known when a case was screened.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from medad_core.errors import ConfigError, StoreError
from medad_core.inbox.batch import histories_of
from medad_core.inbox.records import Batch, Screening
from medad_core.run.cohort import Member, cohort_of
from medad_core.run.run import Run
from medad_core.stages.facts import CASES_FILE
from medad_core.stages.followup import PAIRS_FILE, Examination, Followed, follow, read_followups, write_followed
from medad_core.store import fingerprint_of, join, read_table

log = logging.getLogger(__name__)


def write_followup(folder: str, batches: Sequence[Batch], run_of: Callable[[int], str]) -> None:
    """Follow the patients of all committed batches, and write the files of `stages.followup` into `folder`.

    A case counts with its newest content. Raises StoreError.
    """
    newest = {case_id: screenings[-1] for case_id, screenings in histories_of(batches).items()}
    members = _members(batches, newest, run_of)
    count = Counter(member.patient_id for member in members.values())
    several = {case_id: member for case_id, member in members.items() if count[member.patient_id] > 1}
    examinations = []
    rejected = [name for name in several if newest[name].state == "rejected"]
    missing = [(several[name], str(newest[name].reason)) for name in rejected]
    for batch in batches:
        own = [name for name in several if newest[name].batch == batch.number and newest[name].state == "screened"]
        if own:
            found = _examinations(batch, {name: several[name] for name in own}, run_of(batch.number))
            examinations += found
            lost = set(own) - {one.member.case_id for one in found}
            missing += [(several[name], f"batch {batch.number} was not evaluated") for name in sorted(lost)]
    write_followed(folder, follow(examinations, missing, _known(folder)))


def _members(batches: Sequence[Batch], newest: dict[str, Screening], run_of: Callable[[int], str]) -> dict[str, Member]:
    """The cases that count, as the cohorts of their batches have them."""
    members = {}
    for batch in batches:
        try:
            cohort = cohort_of(run_of(batch.number))
        except StoreError as error:  # one damaged file of an old batch must not stop every night
            log.warning("%s; the patients of batch %d are not followed", error, batch.number)
            continue
        for member in cohort.members:
            last = newest.get(member.case_id)
            if last is not None and last.batch == batch.number:
                members[member.case_id] = member
    return members


def _examinations(batch: Batch, members: dict[str, Member], uri: str) -> list[Examination]:
    """The cases of a batch with their facts; none where an earlier version evaluated it."""
    try:
        rows = read_table(join(uri, CASES_FILE)).to_pylist()
        run = Run.reopen(uri)
    except (StoreError, ConfigError) as error:
        log.warning("%s; run `medad evaluate %s` to make it again", error, uri)
        return []
    models = fingerprint_of(batch.fingerprint)
    return [
        Examination(members[row["case_id"]], row, run, models, batch.number)
        for row in rows
        if row["case_id"] in members
    ]


def _known(folder: str) -> Followed:
    """What the cohort's files have; nothing where there are none, or they cannot be read."""
    try:
        rows = read_followups(folder)
        return Followed(rows, read_table(join(folder, PAIRS_FILE)).to_pylist()) if rows else Followed()
    except StoreError as error:
        log.warning("%s; patients are compared again", error)
        return Followed()

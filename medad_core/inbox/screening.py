"""Screens an inbox into a cohort: an unfinished batch is finished first, then new and changed studies become a batch.

One decision: a batch is an ordinary run, and counts as soon as its commit is written. A command screens up to three
batches: the unfinished one, one of new and changed studies, and one of studies that failed before, each in its own
part. So a study that cannot be screened does not affect others. By itself, such a study cannot be distinguished from a
broken machine. The caller passes a function that screens a batch: with flows, or in a plain loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from medad_core.config import Settings
from medad_core.data.source import files_root, find_cases
from medad_core.faults.suspect import Suspect
from medad_core.faults.trial import SURE_IN_A_ROW
from medad_core.inbox.folder import CohortFolder
from medad_core.inbox.records import BatchPlan, PlannedStudy
from medad_core.inbox.scan import InboxScan, scan_inbox
from medad_core.inbox.worklist import WORKLIST, count_listed
from medad_core.run.run import Run
from medad_core.store import join
from medad_core.store.collector import collector_paused

FEW = SURE_IN_A_ROW  # parts; if more fail one after another, they are not at fault
ScreenBatch = Callable[
    [Run, bool], str
]  # from the run of a batch, and whether the machine is known to work, to the page


class ScreenedBatch(BaseModel):
    """A committed batch: numbers of cases, and of slices with a prediction."""

    model_config = ConfigDict(frozen=True)
    batch: int
    page: str
    screened: int
    rejected: int
    changed: int
    slices: int


class CohortOutcome(BaseModel):
    """The result of screening an inbox. `cases` and `slices` are numbers of the whole cohort's predictions.

    `listed` are the cases of the worklist, `rejected` those that are not in it because their newest content could not
    be used, `followed` the patients who were examined more than once.
    """

    model_config = ConfigDict(frozen=True)
    predictions: str
    batches: tuple[ScreenedBatch, ...]
    cases: int
    slices: int
    waiting: dict[str, str]
    unusable: dict[str, str]
    worklist: str = ""
    rejected: int = 0
    listed: int = 0
    followed: int = 0

    def counts(self) -> dict[str, int]:
        """The numbers for the webhook."""
        return {
            "batches": len(self.batches),
            "cases_screened": sum(batch.screened for batch in self.batches),
            "slices_screened": sum(batch.slices for batch in self.batches),
            "cases_rejected": sum(batch.rejected for batch in self.batches),
            "studies_waiting": len(self.waiting),
            "studies_unusable": len(self.unusable),
            "cases_in_cohort": self.cases,
        }


@dataclass(frozen=True)
class _Stuck:
    """An unfinished batch that stopped again, and the suspect that stopped it."""

    plan: BatchPlan
    suspect: Suspect


@dataclass(frozen=True)
class _Screening:
    """One command on a cohort that it has locked."""

    folder: CohortFolder
    inbox: str
    settings: Settings
    screen_batch: ScreenBatch

    def finish_left(self) -> tuple[list[ScreenedBatch], _Stuck | None]:
        """Finish the unfinished batch, if there is one."""
        plan = self.folder.resume(self.inbox)
        if plan is None:
            return [], None
        try:
            return [self.screen(plan)], None
        except Suspect as suspect:
            return [], _Stuck(plan, suspect)

    def screen(self, plan: BatchPlan, machine_is_well: bool = False) -> ScreenedBatch:
        """Run the stages on the batch's folder, and commit it."""
        run = Run.reopen(self.folder.run_of(plan.number), self._settings_of(plan))
        run.note(self.inbox)
        page = self.screen_batch(run, machine_is_well)
        batch = self.folder.commit(self.inbox, plan)
        done = [screening for screening in batch.screenings if screening.state == "screened"]
        return ScreenedBatch(
            batch=batch.number,
            page=page,
            screened=len(done),
            rejected=len(batch.screenings) - len(done),
            changed=len(batch.changed),
            slices=sum(screening.slices for screening in done),
        )

    def sort_out(
        self, pending: Sequence[PlannedStudy], stuck: _Stuck | None
    ) -> list[tuple[tuple[PlannedStudy, ...], bool]]:
        """The pending studies as up to two batches: new ones, and, with a part for each, those that failed before.

        A stuck batch is withdrawn first. Raises its suspect if it is so large that the machine must be at fault, or if
        its studies were already tried in parts of their own and there are no other studies.
        """
        tried = {planned.study.content for planned in stuck.plan.studies} if stuck else set()
        again = tuple(planned for planned in pending if planned.attempt > 1 or planned.study.content in tried)
        fresh = tuple(planned for planned in pending if planned not in again)
        if stuck is not None:
            if self._is_hopeless(stuck, again, fresh):
                raise stuck.suspect
            self.folder.withdraw(stuck.plan)
        return [(studies, apart) for studies, apart in ((fresh, False), (again, True)) if studies]

    def _is_hopeless(self, stuck: _Stuck, again: Sequence[PlannedStudy], fresh: Sequence[PlannedStudy]) -> bool:
        if stuck.plan.apart:
            return again == stuck.plan.studies and not fresh
        return len(stuck.plan.studies) > FEW * self.settings.data.cases_per_part

    def _settings_of(self, plan: BatchPlan) -> Settings:
        """The settings for a batch: studies that failed before get a part each."""
        if not plan.apart:
            return self.settings
        data = self.settings.data.model_copy(update={"cases_per_part": 1})
        return self.settings.model_copy(update={"data": data})


@dataclass(frozen=True)
class Inbox:
    """An inbox and its cohort, looked at; nothing of it is screened yet. The caller holds the cohort's lock.

    `scan` is None where a batch is unfinished: the inbox is scanned after that.
    """

    folder: CohortFolder
    uri: str
    settings: Settings
    fingerprint: dict[str, str]
    scan: InboxScan | None

    @classmethod
    def look(cls, folder: CohortFolder, uri: str, settings: Settings) -> Inbox:
        """Look at the inbox `uri`. Raises StoreError if the cohort was screened with others, or is damaged."""
        folder.reconcile()
        settled, fingerprint = _settled(folder, settings)
        inbox = cls(folder, uri, settled, fingerprint, None)
        return inbox if folder.open_batch() is not None else replace(inbox, scan=inbox.scanned())

    @property
    def root(self) -> str:
        """The folder that the paths of files are relative to."""
        return files_root(self.uri, self.settings.data)

    def scanned(self) -> InboxScan:
        """What is in the inbox now, which the ledger has as well."""
        scan = scan_inbox(self.uri, self.settings, self.folder.known_files())
        self.folder.write_ledger(self.root, scan)
        return scan

    def unchanged(self) -> CohortOutcome | None:
        """The outcome where nothing is left to screen; None where there is something."""
        if self.scan is None or self.folder.pending(self.scan, self.settings.inbox.attempts):
            return None
        return outcome_of(self.folder, (), self.scan)

    def screen(self, screen_batch: ScreenBatch) -> CohortOutcome:
        """Screen new and changed studies, after the unfinished batch. Raises every error that stops a run."""
        data = self.settings.data
        if data.pseudonyms is not None and not Path(self.root).is_dir():  # the unfinished batch reads these links
            find_cases(self.uri, data, may_be_empty=True)
        screening = _Screening(self.folder, self.root, self.settings, screen_batch)
        batches, stuck = screening.finish_left()
        scan = self.scanned() if self.scan is None else self.scan
        machine_is_well = False
        for studies, apart in screening.sort_out(self.folder.pending(scan, self.settings.inbox.attempts), stuck):
            plan = self.folder.plan_batch(self.root, studies, self.fingerprint, self.settings, apart)
            batches.append(screening.screen(plan, machine_is_well))
            machine_is_well = batches[-1].screened > 0
            self.folder.write_ledger(self.root, scan)
        return outcome_of(self.folder, batches, scan)


def screen_inbox(folder: CohortFolder, inbox: str, settings: Settings, screen_batch: ScreenBatch) -> CohortOutcome:
    """Look at an inbox, and screen what is new in it: `Inbox.look`, then `Inbox.screen`."""
    return Inbox.look(folder, inbox, settings).screen(screen_batch)


def _settled(folder: CohortFolder, settings: Settings) -> tuple[Settings, dict[str, str]]:
    """The settings with the precision of the cohort, even if `auto` would select a different one on this machine."""
    from medad_core.run.fingerprints import run_fingerprint, settled_precision  # model libraries take seconds

    fingerprint = run_fingerprint(settings, folder.fingerprint())
    folder.check_fingerprint(fingerprint)
    models = settings.models.model_copy(update={"precision": settled_precision(fingerprint)})
    return settings.model_copy(update={"models": models}), fingerprint


@collector_paused()
def outcome_of(folder: CohortFolder, batches: Sequence[ScreenedBatch], scan: InboxScan) -> CohortOutcome:
    """What the command reports of a cohort whose files are up to date. Raises StoreError."""
    from medad_core.stages.followup import read_followups  # model libraries take seconds

    newest = [screenings[-1] for screenings in folder.histories().values()]
    return CohortOutcome(
        predictions=join(folder.uri, "predictions.parquet"),
        batches=tuple(batches),
        cases=sum(screening.state == "screened" for screening in newest),
        slices=sum(screening.slices for screening in newest),
        waiting=scan.waiting,
        unusable=scan.unusable,
        worklist=join(folder.uri, WORKLIST),
        rejected=sum(screening.state == "rejected" for screening in newest),
        listed=count_listed(join(folder.uri, WORKLIST)),
        followed=len({row.patient for row in read_followups(folder.uri)}),
    )

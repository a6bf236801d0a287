"""The folder of an incremental cohort: its batches, the files derived from them, and the studies left to screen.

The package's docstring lists the files. A caller that writes must hold the lock (`lock.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from medad_core.config import Settings
from medad_core.errors import StoreError, UsageError, first_line
from medad_core.inbox.batch import PREDICTIONS, case_of, current_time, finished_batch, histories_of, next_screening
from medad_core.inbox.lists import COMMIT, write_lists
from medad_core.inbox.records import LEDGER, Batch, BatchPlan, CaseHistory, Ledger, PlannedStudy, Screening, StoredFile
from medad_core.inbox.scan import InboxScan
from medad_core.inbox.view import write_predictions
from medad_core.run.cohort import NAME as COHORT
from medad_core.run.cohort import cohort_of, settle_cohort, write_cohort
from medad_core.run.gather import members_of
from medad_core.store import open_stages, write_bytes
from medad_core.store.collector import collector_paused
from medad_core.store.files import explained, join, read_bytes, remove, remove_tree, resolved, sweep
from medad_core.store.listing import list_names, read_many
from medad_core.store.planning import difference
from medad_core.store.records import Record

log = logging.getLogger(__name__)
PLANNED = "_planned.json"
_WITHDRAWN = ".withdrawn"  # ends the name of a note beside a batch that is being removed
_EARLIER_SCRATCH = ".new"  # in which earlier versions planned a batch
_FROM_BACKUP = "bring it back from a backup"
_DELETE_BATCH = "nothing of it counts yet, the next command screens it again"
Kind = TypeVar("Kind", bound=Record)


class CohortFolder:
    """The FOLDER of `medad screen INBOX --cohort FOLDER`, on a disk or in a bucket. Its only state is its name.

    Raises UsageError for a folder that is inside the inbox.
    """

    def __init__(self, folder: str | Path, inbox: str | Path | None = None) -> None:
        self.uri = str(folder)
        if inbox is not None and f"{resolved(folder)}/".startswith(f"{resolved(inbox).rstrip('/')}/"):
            raise UsageError(
                f"--cohort {folder}: lies inside the inbox {inbox}, and would be scanned for studies; "
                "choose a folder beside it"
            )

    # --- what is on disk --------------------------------------------------------------------------------------------

    def run_of(self, number: int) -> str:
        """The run of a batch."""
        return join(self.uri, "batches", f"{number:05d}")

    @collector_paused()
    def batches(self) -> tuple[Batch, ...]:
        """The committed batches, oldest first.

        Raises StoreError for a commit that is damaged or missing, because its content must not be guessed.
        """
        folder = join(self.uri, "batches")
        names = sorted(name for name in list_names(folder) if name.isdecimal())
        commits = read_many(folder, [f"{name}/{COMMIT}" for name in names])
        batches = [_parsed(Batch, data, join(folder, name), _FROM_BACKUP) for name, data in commits if data is not None]
        numbers = [batch.number for batch in batches]
        if numbers != list(range(1, len(batches) + 1)):
            raise StoreError(f"{self.uri}/batches has commits of {numbers}; bring back the missing batch from a backup")
        return tuple(batches)

    def open_batch(self) -> BatchPlan | None:
        """The batch that was begun and is not committed, if any. Raises StoreError if its plan is damaged."""
        run = self.run_of(len(self.batches()) + 1)
        path = join(run, PLANNED)
        data = read_bytes(path)
        return None if data is None else _parsed(BatchPlan, data, path, f"delete {run}: {_DELETE_BATCH}")

    def open_run(self) -> str | None:
        """The run of the batch that is being screened, None if there is none."""
        plan = self.open_batch()
        return None if plan is None else self.run_of(plan.number)

    @collector_paused()
    def ledger(self) -> Ledger | None:
        """The ledger as last written.

        None if there is none, or it is damaged: the next screening writes it again.
        """
        data = read_bytes(join(self.uri, LEDGER))
        try:
            return None if data is None else Ledger.from_json(data)
        except ValueError:
            log.warning("%s is damaged; it is made again from the batches", join(self.uri, LEDGER))
            return None

    def histories(self) -> dict[str, tuple[Screening, ...]]:
        """All screenings of every case, oldest first, by case_id."""
        return histories_of(self.batches())

    def known_files(self) -> dict[str, StoredFile]:
        """Files of the last scan by path; empty if there is no ledger: then all files are hashed again."""
        ledger = self.ledger()
        return {} if ledger is None else ledger.files

    def fingerprint(self) -> dict[str, str] | None:
        """The fingerprint of the rows that were made, or are being made; None for a new cohort."""
        path = join(self.run_of(1), COMMIT)
        data = read_bytes(path)
        if data is not None:
            return _parsed(Batch, data, path, _FROM_BACKUP).fingerprint
        plan = self.open_batch()
        return None if plan is None else plan.fingerprint

    def check_fingerprint(self, current: dict[str, str]) -> None:
        """Raise StoreError if the cohort was screened with different models or settings."""
        stored = self.fingerprint()
        if stored is not None and stored != current:
            raise StoreError(
                f"{self.uri} was screened {difference(stored, current)}; choose another --cohort for these settings"
            )

    # --- what is left to do -----------------------------------------------------------------------------------------

    def reconcile(self) -> None:
        """Update the predictions and remove what killed writers left. Every command does this first."""
        self._clear()
        sweep(self.uri)
        self.write_view()

    @collector_paused()
    def pending(self, scan: InboxScan, attempts: int) -> tuple[PlannedStudy, ...]:
        """Studies that are new, changed, or worth another attempt."""
        histories = self.histories()
        planned = [next_screening(study, histories.get(study.case_id, ()), attempts) for study in scan.studies]
        return tuple(study for study in planned if study is not None)

    def plan_batch(
        self,
        inbox: str,
        studies: Sequence[PlannedStudy],
        fingerprint: dict[str, str],
        settings: Settings,
        apart: bool = False,
    ) -> BatchPlan:
        """Plan the next batch. Its plan is written last, so every batch has its cohort.

        Raises StoreError if a file of a study is missing.
        """
        plan = BatchPlan(
            number=len(self.batches()) + 1,
            opened=current_time(),
            fingerprint=fingerprint,
            studies=tuple(studies),
            apart=apart,
        )
        cases = [case_of(inbox, planned.study, settings.data.modality) for planned in studies]
        run = self.run_of(plan.number)
        with explained("plan a batch of", inbox):  # a file may be deleted between the scan and the plan
            settle_cohort(run, members_of(inbox, cases, settings.data))
        write_bytes(join(run, PLANNED), plan.to_json())
        return plan

    def resume(self, inbox: str) -> BatchPlan | None:
        """The unfinished batch, ready to be resumed with `inbox` as the inbox's current path; None if there is none.

        Raises StoreError if its run is damaged.
        """
        plan = self.open_batch()
        if plan is None:
            return None
        run = self.run_of(plan.number)
        try:
            cohort = cohort_of(run)
        except StoreError as error:
            raise StoreError(f"{run} is damaged; delete it: {_DELETE_BATCH}") from error
        sweep(run)
        for stage in open_stages(run).values():
            stage.sweep()
        if cohort.root != inbox:
            write_cohort(run, cohort.at(inbox))
        return plan

    def withdraw(self, plan: BatchPlan) -> None:
        """Remove an unfinished batch: its studies are pending again. It never counted."""
        # Every command removes what has this note beside it, so a kill here does no harm.
        write_bytes(f"{self.run_of(plan.number)}{_WITHDRAWN}", b"")
        self._clear()

    # --- results ----------------------------------------------------------------------------------------------------

    def commit(self, inbox: str, plan: BatchPlan) -> Batch:
        """Commit a finished batch, and update the predictions.

        Cases whose files have changed since the plan do not count: the next batch screens them again.
        """
        run = self.run_of(plan.number)
        batch = finished_batch(run, inbox, plan)
        write_bytes(join(run, COMMIT), batch.to_json())
        self.write_view()
        return batch

    @collector_paused()
    def write_view(self) -> None:
        """Write what is derived from all batches: predictions, worklist and follow-up, where they are out of date.

        They hold the newest screening of every case.
        """
        batches = self.batches()
        write_predictions(join(self.uri, PREDICTIONS), batches, self.run_of)
        write_lists(self.uri, batches, self.run_of)

    @collector_paused()
    def write_ledger(self, inbox: str, scan: InboxScan) -> Ledger:
        """Write `ledger.json`, replacing the earlier one."""
        present = {study.case_id for study in scan.studies} | scan.waiting.keys() | scan.unusable.keys()
        batches = self.batches()
        cases = {
            case_id: CaseHistory(present=case_id in present, screenings=screenings)
            for case_id, screenings in histories_of(batches).items()
        }
        ledger = Ledger(
            inbox=inbox,
            looked=current_time(),
            batches=tuple(batch.number for batch in batches),
            cases=cases,
            waiting=scan.waiting,
            unusable=scan.unusable,
            files={file.path: file for study in scan.studies for file in study.files},
        )
        write_bytes(join(self.uri, LEDGER), ledger.to_json())
        return ledger

    def _clear(self) -> None:
        """Remove what is left of batches that were withdrawn, or not planned to their end."""
        folder = join(self.uri, "batches")
        names = list_names(folder)
        for name in sorted(name for name in names if name.endswith(_WITHDRAWN)):
            remove_tree(join(folder, name.removesuffix(_WITHDRAWN)))
            remove(join(folder, name))
        if _EARLIER_SCRATCH in names:
            remove_tree(join(folder, _EARLIER_SCRATCH))
        run = self.run_of(len(self.batches()) + 1)
        if {name for name in list_names(run) if not name.startswith(".")} == {COHORT}:
            remove_tree(run)


def _parsed(kind: type[Kind], data: bytes, path: str, way_out: str) -> Kind:
    try:
        return kind.from_json(data)
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({first_line(error)}); {way_out}") from error

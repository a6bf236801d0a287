"""A cohort's folder: its batches, what they say together, and what is left to screen.

See the package for the files and for what is true and what is a view. Whoever writes here holds the lock (`lock.py`).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medad_core.config import Settings
from medad_core.data.cases import Case, VolumeRef
from medad_core.data.nifti import UNREADABLE
from medad_core.errors import StoreError, UsageError
from medad_core.inbox.look import Look, unchanged
from medad_core.inbox.records import Batch, BatchPlan, CaseHistory, Ledger, Planned, Screening, StoredFile, Study
from medad_core.run.cohort import cohort_of, members_of, settle_cohort
from medad_core.stages.common import QUARANTINED, sweep_run, write_rejected
from medad_core.store import COHORT_PREDICTIONS, join, read_table, sha256_file, write_bytes, write_table, write_text
from medad_core.store.files import explained, move_folder, read_bytes, sweep
from medad_core.store.planning import difference
from medad_core.store.records import Record

log = logging.getLogger(__name__)
PLANNED, COMMIT, LEDGER, PREDICTIONS = "_planned.json", "_batch.json", "ledger.json", "predictions.parquet"
BATCHES_IN_VIEW = b"medad.batches"
UNFINISHED = ".new"  # the folder of a batch that is being laid out
Kind = TypeVar("Kind", bound=Record)


def is_cohort(folder: str) -> bool:
    """Whether `folder` is that of an incremental cohort, and not of one run."""
    return (Path(folder) / "batches").is_dir() or (Path(folder) / LEDGER).is_file()


class CohortFolder:
    """`medad screen INBOX --cohort FOLDER`. Keeps no state but its path: what is true lies on disk."""

    def __init__(self, folder: str | Path, inbox: Path | None = None) -> None:
        if "://" in str(folder):
            raise UsageError(
                f"--cohort {folder}: a cohort needs a local or mounted folder, because it is locked while it is screened"
            )
        self.folder = Path(folder)
        if inbox is not None and self.folder.resolve().is_relative_to(inbox.resolve()):
            raise UsageError(
                f"--cohort {folder}: lies inside the inbox {inbox}, and would be looked into as if it were studies; choose a folder beside it"
            )

    # --- what is there ----------------------------------------------------------------------------------------------

    def run_of(self, number: int) -> Path:
        """The run of a batch."""
        return self.folder / "batches" / f"{number:05d}"

    def batches(self) -> tuple[Batch, ...]:
        """The committed batches, oldest first. Raises StoreError for a commit that is damaged: what it says must not be guessed."""
        found = [
            _parsed(Batch, read_bytes(str(path)) or b"", path, "bring it back from a backup")
            for path in sorted(self.folder.glob(f"batches/*/{COMMIT}"))
        ]
        if [batch.number for batch in found] != list(range(1, len(found) + 1)):
            raise StoreError(
                f"{self.folder}/batches has commits of {[batch.number for batch in found]}; bring back the missing batch from a backup"
            )
        return tuple(found)

    def open_batch(self) -> BatchPlan | None:
        """The batch that was begun and is not committed, if any."""
        path = self.run_of(len(self.batches()) + 1) / PLANNED
        data = read_bytes(str(path))
        return (
            None
            if data is None
            else _parsed(
                BatchPlan,
                data,
                path,
                f"delete {path.parent}: nothing of it counts yet, the next command screens it anew",
            )
        )

    def open_run(self) -> str | None:
        """The run of the batch that is being screened, None where there is none."""
        plan = self.open_batch()
        return None if plan is None else str(self.run_of(plan.number))

    def ledger(self) -> Ledger | None:
        """The ledger as it was last written; None where there is none, or it is damaged (the next screening writes it anew)."""
        data = read_bytes(str(self.folder / LEDGER))
        try:
            return None if data is None else Ledger.from_json(data)
        except ValueError:
            log.warning("%s is damaged; it is made again from the batches", self.folder / LEDGER)
            return None

    def histories(self) -> dict[str, tuple[Screening, ...]]:
        """All screenings of every case, oldest first."""
        found: dict[str, list[Screening]] = {}
        for batch in self.batches():
            for screening in batch.screenings:
                found.setdefault(screening.case_id, []).append(screening)
        return {case_id: tuple(found[case_id]) for case_id in sorted(found)}

    # --- what is to do ----------------------------------------------------------------------------------------------

    def reconcile(self) -> None:
        """Bring the view up to the commits, after whatever killed the command before; leftovers of killed writers go."""
        self._clear()
        sweep(str(self.folder))
        self.write_view()

    def _clear(self) -> None:
        scratch = self.folder / "batches" / UNFINISHED
        with explained("clear", str(scratch)):
            if scratch.exists():
                shutil.rmtree(scratch)

    def known_files(self) -> dict[str, StoredFile]:
        """Files of the last look by path; none where the ledger is gone: they are hashed again then."""
        ledger = self.ledger()
        return {} if ledger is None else ledger.files

    def pending(self, seen: Look, attempts: int) -> tuple[Planned, ...]:
        """Studies that are new, changed, or worth another attempt."""
        histories = self.histories()
        wanted = (_next(study, histories.get(study.case_id, ()), attempts) for study in seen.studies)
        return tuple(planned for planned in wanted if planned is not None)

    def check_fingerprint(self, now: dict[str, str]) -> None:
        """Raise StoreError where the cohort was screened with other models or settings: its rows could not be compared."""
        there = self.fingerprint()
        if there is not None and there != now:
            raise StoreError(
                f"{self.folder} was screened {difference(there, now)}; choose another --cohort for these settings"
            )

    def fingerprint(self) -> dict[str, str] | None:
        """What determined the rows that are there, or are being made; None for a new cohort."""
        open_batch, batches = self.open_batch(), self.batches()
        return batches[0].fingerprint if batches else open_batch.fingerprint if open_batch else None

    def plan_batch(
        self,
        inbox: Path,
        studies: Sequence[Planned],
        fingerprint: dict[str, str],
        settings: Settings,
        apart: bool = False,
    ) -> BatchPlan:
        """Lay out the next batch. Its folder appears whole, so a batch that is there has its plan and its cohort."""
        plan = BatchPlan(
            number=len(self.batches()) + 1, opened=_now(), fingerprint=fingerprint, studies=tuple(studies), apart=apart
        )
        cases = [_case(inbox, planned.study, settings.data.modality) for planned in studies]
        scratch = self.folder / "batches" / UNFINISHED
        with explained("plan a batch of", str(inbox)):  # a file may go between the look and now
            settle_cohort(str(scratch), members_of(inbox, cases, settings.data))
        write_bytes(str(scratch / PLANNED), plan.to_json())
        move_folder(scratch, self.run_of(plan.number))
        return plan

    def resume(self, inbox: Path) -> BatchPlan | None:
        """The batch that was begun, ready to go on, wherever the inbox is mounted now."""
        plan = self.open_batch()
        if plan is not None:
            run = str(self.run_of(plan.number))
            try:
                cohort = cohort_of(run)
            except StoreError as error:
                raise StoreError(
                    f"{run} is damaged; delete it: nothing of it counts yet, the next command screens it anew"
                ) from error
            sweep_run(run)
            if cohort.root != str(inbox):
                write_text(
                    join(run, "cohort.json"), cohort.model_copy(update={"root": str(inbox)}).model_dump_json(indent=1)
                )
        return plan

    def withdraw(self, plan: BatchPlan) -> None:
        """Let go of a batch that was begun: its studies are pending again, and nothing of it ever counted."""
        move_folder(
            self.run_of(plan.number), self.folder / "batches" / UNFINISHED
        )  # which goes by itself, should this be killed
        self._clear()

    # --- what became of it ------------------------------------------------------------------------------------------

    def commit(self, inbox: Path, plan: BatchPlan) -> Batch:
        """Let a finished batch count. Cases whose files are no longer those that were planned do not: the next batch screens them as they are now."""
        run = self.run_of(plan.number)
        predictions = str(run / PREDICTIONS)
        slices = dict(zip(*_counts(read_table(predictions, ["case_id"])["case_id"]), strict=True))
        reasons = {case_id: f"{stage}: {reason}" for case_id, stage, reason in write_rejected(str(run))}
        # A volume that was whole when it was hashed, and could not be read a moment later, is no fault of the study.
        gone = {
            planned.study.case_id
            for planned in plan.studies
            if UNREADABLE in reasons.get(planned.study.case_id, "") or not unchanged(inbox, planned.study)
        }
        batch = Batch(
            number=plan.number,
            opened=plan.opened,
            committed=_now(),
            fingerprint=plan.fingerprint,
            predictions_sha256=sha256_file(predictions),
            screenings=tuple(
                _screening(plan.number, planned, slices, reasons)
                for planned in plan.studies
                if planned.study.case_id not in gone
            ),
            changed=tuple(planned.study.case_id for planned in plan.studies if planned.study.case_id in gone),
        )
        write_bytes(str(run / COMMIT), batch.to_json())
        self.write_view()
        return batch

    def write_view(self) -> None:
        """`predictions.parquet`: rows of the newest screening of every case, replaced whole; nothing happens where it is up to date.

        A case whose newest content was rejected has no rows: those of its older content would pass for the newer.
        """
        batches, path = self.batches(), str(self.folder / PREDICTIONS)
        numbers = ",".join(str(batch.number) for batch in batches).encode()
        if not batches or _batches_in(path) == numbers:
            return
        newest = {case_id: screenings[-1] for case_id, screenings in self.histories().items()}
        tables = [self._rows_of(batch, newest) for batch in batches]
        whole = pa.concat_tables(tables).sort_by([("case_id", "ascending"), ("slice_index", "ascending")])
        # What a batch's file says of its columns to pandas (a label is a nullable integer) is kept.
        write_table(
            path,
            whole,
            COHORT_PREDICTIONS.with_metadata({**(tables[-1].schema.metadata or {}), BATCHES_IN_VIEW: numbers}),
        )

    def _rows_of(self, batch: Batch, newest: dict[str, Screening]) -> pa.Table:
        path = str(self.run_of(batch.number) / PREDICTIONS)
        if sha256_file(path) != batch.predictions_sha256:
            raise StoreError(f"{path} is not the file that was committed; bring it back from a backup")
        current = {s.case_id: s.revision for s in batch.screenings if newest[s.case_id] == s}
        rows = read_table(path)
        rows = rows.filter(pc.is_in(rows["case_id"], pa.array(list(current), pa.string())))
        revisions = pa.array([current[case_id] for case_id in rows["case_id"].to_pylist()], pa.int32())
        return rows.append_column("revision", revisions).append_column(
            "batch", pa.array([batch.number] * len(rows), pa.int32())
        )

    def write_ledger(self, inbox: Path, seen: Look) -> Ledger:
        """`ledger.json`, replaced whole."""
        there = {study.case_id for study in seen.studies} | seen.waiting.keys() | seen.unusable.keys()
        ledger = Ledger(
            inbox=str(inbox),
            looked=_now(),
            batches=tuple(batch.number for batch in self.batches()),
            cases={
                case_id: CaseHistory(present=case_id in there, screenings=screenings)
                for case_id, screenings in self.histories().items()
            },
            waiting=seen.waiting,
            unusable=seen.unusable,
            files={file.path: file for study in seen.studies for file in study.files},
        )
        write_bytes(str(self.folder / LEDGER), ledger.to_json())
        return ledger


def _counts(column: pa.ChunkedArray) -> tuple[list[str], list[int]]:
    counts = pc.value_counts(column)
    return counts.field("values").to_pylist(), counts.field("counts").to_pylist()


def _next(study: Study, history: tuple[Screening, ...], attempts: int) -> Planned | None:
    """The screening that a study needs now, None where its content is on record for good."""
    if not history:
        return Planned(study=study, revision=1, attempt=1)
    last = history[-1]
    if last.content != study.content:
        return Planned(study=study, revision=last.revision + 1, attempt=1)
    again = last.state == "rejected" and QUARANTINED in last.reason and last.attempt < attempts
    return Planned(study=study, revision=last.revision, attempt=last.attempt + 1) if again else None


def _screening(number: int, planned: Planned, slices: dict[str, int], reasons: dict[str, str]) -> Screening:
    case_id, rows = planned.study.case_id, slices.get(planned.study.case_id, 0)
    if (rows > 0) == (case_id in reasons):
        raise StoreError(
            f"batch {number}: {case_id} has {rows} rows and {'a' if case_id in reasons else 'no'} reason of rejection; delete the batch's folder to screen it anew"
        )
    return Screening(
        case_id=case_id,
        batch=number,
        revision=planned.revision,
        attempt=planned.attempt,
        content=planned.study.content,
        state="screened" if rows else "rejected",
        reason=reasons.get(case_id),
        slices=rows,
    )


def _case(inbox: Path, study: Study, modality: str) -> Case:
    def ref(file: StoredFile) -> VolumeRef:
        return VolumeRef(str(inbox / file.path), file.channel)

    return Case(study.case_id, {modality: ref(study.volume)}, ref(study.mask) if study.mask else None)


def _parsed(kind: type[Kind], data: bytes, path: Path, way_out: str) -> Kind:
    try:
        return kind.from_json(data)
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({str(error).splitlines()[0]}); {way_out}") from error


def _batches_in(path: str) -> bytes | None:
    """The batches that a view was made of; None where there is no sound one."""
    try:
        return (pq.read_schema(path).metadata or {}).get(BATCHES_IN_VIEW)
    except (OSError, pa.ArrowInvalid):
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

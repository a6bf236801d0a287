"""A stage on disk: `RUN/{stage}/` with plan, parts, part records and manifest, written in this order.

One decision: no file that marks completion is written before the data. A part counts if it has a record with the right
sha256. Every other part is ignored and made again. So the same command resumes a killed run.

    stage = Stage(run, "maps", MAPS)
    parts = [("case_a", "case_b"), ("case_c",)]
    stage.prepare({"decoder": sha, "slices": upstream.plan().fingerprint_sha256}, parts)
    for number in stage.pending():
        stage.write_part(number, rows, failed=[Item(key="case_b", reason="…")], seconds=1.5)
    manifest = stage.finish()

Files: `_plan.json`, `part-00000.parquet`, `_parts/00000.json`, `_manifest.json`. What was read is cached
(`bookkeeping`), so open a stage once and pass it on. When it is pickled for another process, the cache stays behind.
Different parts may be written at the same time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from medad_core.errors import StoreError
from medad_core.store import files, listing
from medad_core.store.bookkeeping import PARTS, Bookkeeping
from medad_core.store.collector import collector_paused
from medad_core.store.intact import IntactParts
from medad_core.store.planning import account, complete_fingerprint, difference, make_plan
from medad_core.store.records import (
    Item,
    PartPlan,
    PartRecord,
    Plan,
    StageManifest,
    StageProgress,
    manifest_of,
    part_name,
)
from medad_core.store.replanning import differ_in_inputs_only, replan
from medad_core.store.schemas import PART_STAGES, with_view
from medad_core.store.tables import Rows, read_case_rows, read_table, write_groups

log = logging.getLogger(__name__)


class Stage:
    """One stage of one run. `run` is a path or a URI, `schema` has case_id and slice_index among its fields."""

    def __init__(self, run: str, name: str, schema: pa.Schema) -> None:
        self.run = str(run)
        self.name = name
        self.schema = schema
        self.uri = files.join(self.run, name)
        self._books = Bookkeeping(self.uri)
        self._intact = IntactParts(self.uri)

    def __reduce__(self) -> tuple[Any, ...]:
        return Stage, (self.run, self.name, self.schema)

    # --- plan -------------------------------------------------------------------------------------------------------

    @collector_paused()
    def prepare(
        self, fingerprint: Mapping[str, str], parts: Sequence[Sequence[str]], after: Sequence[Stage] | None = None
    ) -> Plan:
        """Write the plan, or return the stored one.

        `fingerprint` contains what determines the rows (hashes of models and weights, scaling, prompts, the upstream
        plan's `fingerprint_sha256`); the schema and the set of inputs are added here. `parts` are case ids, in row
        order; how they are cut into parts is not in the fingerprint. If `after` is given, the stages after this one,
        the stage is planned again where only its inputs differ. Raises StoreError if the stored plan has a different
        fingerprint (naming the fields and what to do), ValueError for a key that says how rows are made.
        """
        plan = self.find_plan()
        if plan is None:
            plan = self._books.write_first_plan(make_plan(self.name, fingerprint, self.schema, parts))
        wanted = complete_fingerprint(self.name, fingerprint, self.schema, parts)
        if after is not None and differ_in_inputs_only(plan.fingerprint, wanted):
            replan(self, make_plan(self.name, fingerprint, self.schema, parts), after)
            plan = self.plan()
        if wanted != plan.fingerprint:
            changes = difference(plan.fingerprint, wanted)
            raise StoreError(
                f"{self.uri} was made {changes}; choose another output folder, "
                f"or delete {self.uri} and the stages after it to make them again"
            )
        self.sweep()
        return plan

    @collector_paused()
    def find_plan(self) -> Plan | None:
        """The stored plan, None if the stage was never prepared. Raises StoreError if it is damaged."""
        return self._books.read_plan()

    def replace_plan(self, plan: Plan) -> None:
        """Replace the stored plan. A part with the same inputs keeps its record. Raises StoreError."""
        self._books.replace_plan(plan)

    def plan(self) -> Plan:
        """The plan as this object first read it. Raises StoreError if there is none."""
        plan = self._books.plan
        if plan is None:
            raise StoreError(
                f"there is no stage {self.name} in {self.run}; run `medad screen DATA --out {self.run}` first"
            )
        return plan

    def sweep(self) -> None:
        """Remove the temporary files that killed writers left. Raises StoreError."""
        for folder in (self.uri, files.join(self.uri, PARTS)):
            files.sweep(folder)

    # --- parts ------------------------------------------------------------------------------------------------------

    def pending(self) -> list[int]:
        """Numbers of the planned parts that have no valid record, or whose file does not have the recorded sha256.

        A file is hashed once, and again only if it was written to since.
        """
        return self._survey()[1]

    @collector_paused()
    def _survey(self) -> tuple[dict[int, PartRecord], list[int]]:
        """The valid records, and the numbers that `pending` returns."""
        plan = self.plan()
        records = self._books.records(plan)
        stamps = listing.list_files(self.uri)
        pending = []
        for part in plan.parts:
            fault = self._intact.fault(part.number, records.get(part.number), stamps.get(part_name(part.number)))
            if fault is None:
                continue
            pending.append(part.number)
            if fault != "no record":
                log.warning("%s part %d is made again: %s", self.name, part.number, fault)
        return records, pending

    def write_part(
        self,
        number: int,
        rows: Rows,
        *,
        skipped: Sequence[Item] = (),
        failed: Sequence[Item] = (),
        seconds: float = 0.0,
        made_with: Mapping[str, str] | None = None,
    ) -> PartRecord:
        """Write a part, then its record.

        `rows` is a table, or an iterable of record batches or tables that is consumed during writing. Cases must be in
        the planned order, the rows of a case adjacent, and slice_index increasing; each case gets a row group. Every
        planned input must either have rows, or be in `skipped` or `failed`; `failed` may grow while `rows` is
        consumed. `seconds` is added to the time of writing, `made_with` is recorded. Raises StoreError; then there is
        no record. Errors raised by the iterable `rows` pass through.
        """
        started = time.perf_counter()
        plan = self.plan()
        part = self._planned(number)
        where = f"{self.name} part {number}"
        # A part that is written again must not look complete in the meantime.
        self.forget(number)
        with files.new_file(self._part_at(number)) as temporary:
            count, cases = write_groups(temporary, rows, with_view(self.schema, plan.fingerprint), where)
            account(where, part, cases, skipped, failed)
            size = temporary.stat().st_size
            digest = files.sha256_file(str(temporary))
        record = PartRecord(
            number=number,
            rows=count,
            bytes=size,
            sha256=digest,
            seconds=round(seconds + time.perf_counter() - started, 3),
            requested=len(part.inputs),
            done=len(cases),
            skipped=tuple(skipped),
            failed=tuple(failed),
            plan_sha256=plan.sha256,
            made_with=dict(made_with or {}),
            tag=listing.tag_of(self._part_at(number)),
        )
        self._books.write_record(record)
        return record

    def begin(self, number: int) -> None:
        """Write a note that a part is being made; `leave` removes it.

        A note that remains means that the process ended while it made the part.
        """
        self._books.write_note(number)

    def leave(self, number: int) -> None:
        """Remove the note of `begin`, whether the part was made or not."""
        self._books.remove_note(number)

    def begun(self) -> set[int]:
        """The parts that are being made, or that a process did not finish because it ended."""
        return self._books.noted()

    def forget(self, number: int) -> None:
        """Make a part pending again."""
        self._books.remove_record(number)

    @collector_paused()
    def records(self) -> dict[int, PartRecord]:
        """Valid records of this plan by part number, without reading the parts themselves."""
        return self._books.records(self.plan())

    @collector_paused()
    def failed(self) -> tuple[Item, ...]:
        """The cases that failed so far, with their reasons; empty if the stage was never prepared."""
        plan = self.find_plan()
        if plan is None:
            return ()
        manifest = self._books.manifest(plan)  # it names them even if a part was lost since
        if manifest is not None:
            return manifest.failed
        return tuple(item for record in self._books.records(plan).values() for item in record.failed)

    def done_inputs(self, number: int) -> tuple[str, ...]:
        """The cases of a part that have rows, in row order. Raises StoreError if the part is not done."""
        return self._done(self._required(number))

    @collector_paused()
    def finished_inputs(self) -> list[tuple[str, ...]]:
        """`done_inputs` of every part. Raises StoreError if the stage is not finished."""
        manifest = self._books.whole_manifest(self.plan())
        if manifest is None:
            raise StoreError(self._unfinished(self.pending()))
        return [self._done(record) for record in manifest.parts]

    # --- completion -------------------------------------------------------------------------------------------------

    def finish(self) -> StageManifest:
        """Write the manifest, after checking the sha256 of every part. A second call changes nothing.

        Raises StoreError if a part is pending.
        """
        records, pending = self._survey()
        if pending:
            raise StoreError(self._unfinished(pending))
        parts = tuple(records.values())
        stored = self.manifest()
        if stored is not None and stored.parts == parts:
            return stored
        manifest = manifest_of(self.plan(), parts)
        self._books.write_manifest(manifest)
        return manifest

    def manifest(self) -> StageManifest | None:
        """The manifest, None if the stage is not finished (or its manifest is damaged, which `finish` repairs)."""
        plan = self._books.plan
        return None if plan is None else self._books.manifest(plan)

    def is_finished(self) -> bool:
        """Whether there is a manifest, and every record, and every part has the size in it.

        Reads no part; `pending` checks sha256.
        """
        plan = self._books.plan
        manifest = None if plan is None else self._books.whole_manifest(plan)
        if manifest is None:
            return False
        stamps = listing.list_files(self.uri)
        sizes = (stamps.get(part_name(part.number)) for part in manifest.parts)
        return all(stamp and stamp.size == part.bytes for stamp, part in zip(sizes, manifest.parts, strict=True))

    def require_finished(self) -> StageManifest:
        """The manifest of a finished stage. Raises StoreError that says what is missing and what to do."""
        manifest = self.manifest() if self.is_finished() else None
        if manifest is None:
            raise StoreError(self._unfinished(self.pending()))
        return manifest

    @collector_paused()
    def progress(self) -> StageProgress:
        """The progress of the stage; cheap enough for status lines. Raises StoreError if it was never prepared.

        A stage counts as finished if its manifest and files exist; `is_finished` also checks their sizes.
        """
        plan = self.plan()
        manifest = self._books.whole_manifest(plan)
        records = self._books.records(plan).values() if manifest is None else manifest.parts
        return StageProgress(
            stage=self.name,
            parts=len(plan.parts),
            parts_done=len(records),
            rows=sum(record.rows for record in records),
            requested=sum(len(part.inputs) for part in plan.parts),
            done=sum(record.done for record in records),
            skipped=sum(len(record.skipped) for record in records),
            failed=sum(len(record.failed) for record in records),
            seconds=sum(record.seconds for record in records),
            finished=manifest is not None,
        )

    # --- reading ----------------------------------------------------------------------------------------------------

    def read_part(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of one recorded part. Raises StoreError if it is not done, or is not the part that was recorded."""
        self._require_intact(number)
        return read_table(self._part_at(number), columns)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of all parts in order. Raises StoreError if a part is not done."""
        plan = self.plan()
        schema = with_view(self.schema, plan.fingerprint)
        fields = [schema.field(name) for name in columns or schema.names]
        tables = [self.read_part(part.number, columns) for part in plan.parts]
        return pa.concat_tables(tables) if tables else pa.schema(fields).empty_table()

    def read_case(self, case_id: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of one case, from its row group; empty if it was skipped or failed.

        Raises StoreError if unknown, or if its part is not the one that was recorded.
        """
        number = self.plan().part_of.get(case_id)
        if number is None:
            raise StoreError(f"there is no case {case_id!r} in stage {self.name} of {self.run}")
        self._require_intact(number)
        return read_case_rows(self._part_at(number), case_id, columns)

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _part_at(self, number: int) -> str:
        return files.join(self.uri, part_name(number))

    def _planned(self, number: int) -> PartPlan:
        parts = self.plan().parts
        if not 0 <= number < len(parts):
            raise StoreError(f"stage {self.name} in {self.run} has {len(parts)} parts; there is no part {number}")
        return parts[number]

    def _done(self, record: PartRecord) -> tuple[str, ...]:
        without_rows = {item.key for item in (*record.skipped, *record.failed)}
        return tuple(key for key in self._planned(record.number).inputs if key not in without_rows)

    def _required(self, number: int) -> PartRecord:
        self._planned(number)
        record = self._books.record(self.plan(), number)
        if record is None or listing.stamp_of(self._part_at(number)) is None:
            raise StoreError(self._unfinished([number]))
        return record

    def _require_intact(self, number: int) -> None:
        record = self._required(number)
        if self._intact.fault(number, record, listing.stamp_of(self._part_at(number))) is not None:
            raise StoreError(
                f"{self._part_at(number)} is damaged: it is not the file that was recorded; "
                f"run `medad screen DATA --out {self.run}` again, which makes it again"
            )

    def _unfinished(self, pending: Sequence[int]) -> str:
        shown = ", ".join(map(str, pending[:8])) + (", …" if len(pending) > 8 else "")
        missing = f"part {shown} of {len(self.plan().parts)} parts pending" if pending else "no manifest"
        return f"stage {self.name} in {self.run} is not finished ({missing}); run the same command again to resume"


def stage_of(run: str, name: str) -> Stage:
    """One of the stages slices, maps, prompts, answers of the run in the folder `run`."""
    return Stage(run, name, PART_STAGES[name])


def open_stages(run: str) -> dict[str, Stage]:
    """All stages of the run in the folder `run`, by name, in their order."""
    return {name: stage_of(run, name) for name in PART_STAGES}

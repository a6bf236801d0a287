"""A stage on disk: `RUN/{stage}/` with plan, parts, part records and manifest, in that order of writing.

One decision: nothing that looks like completion is written before the data. A part counts when its record says so and its
sha256 agrees; everything else is rubbish and is made again. So a killed run is resumed by running the same command.

    stage = Stage(run, "maps", MAPS)
    stage.prepare({"decoder": sha, "slices": upstream.plan().fingerprint_sha256}, parts=[("case_a", "case_b"), ("case_c",)])
    for number in stage.pending():
        stage.write_part(number, rows, failed=[Item(key="case_b", reason="…")], seconds=1.5)
    manifest = stage.finish()

Files: `_plan.json`, `part-00000.parquet`, `_parts/00000.json`, `_manifest.json`. `Stage` keeps no state but names, so it can
be pickled and made anew in any process; different parts may be written at the same time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

import pyarrow as pa

from medad_core.errors import StoreError
from medad_core.store import files
from medad_core.store.planning import account, difference, make_plan
from medad_core.store.records import Item, PartPlan, PartRecord, Plan, Progress, StageManifest, manifest_of
from medad_core.store.tables import Rows, read_table, write_groups

log = logging.getLogger(__name__)


class Stage:
    """One stage of one run. `run` is a path or an fsspec URI, `schema` has case_id and slice_index among its fields."""

    def __init__(self, run: str, name: str, schema: pa.Schema) -> None:
        self.run, self.name, self.schema = str(run), name, schema
        self.uri = files.join(self.run, name)

    # --- plan -------------------------------------------------------------------------------------------------------

    def prepare(self, fingerprint: Mapping[str, str], parts: Sequence[Sequence[str]]) -> Plan:
        """Write the plan, or give back the one that is there.

        `fingerprint` says what determines the rows (hashes of models and weights, scaling, prompts, the upstream plan's
        `fingerprint_sha256`); the schema and the set of inputs are added here. `parts` are case ids, in row order; how
        they are cut into parts is not part of the fingerprint. Raises StoreError when the plan that is there has another
        fingerprint (naming the fields and the way out), ValueError for a key that says how rows are made.
        """
        plan = make_plan(self.name, fingerprint, self.schema, parts)
        there = self.find_plan()
        if there is None:
            files.make_folder(files.join(self.uri, "_parts"))
            files.write_bytes(self._at("_plan.json"), plan.to_json())
        elif there.fingerprint != plan.fingerprint:
            raise StoreError(
                f"{self.uri} was made {difference(there.fingerprint, plan.fingerprint)}; choose another output folder, or delete "
                f"{self.uri} and the stages after it to make them again"
            )
        for folder in (self.uri, files.join(self.uri, "_parts")):
            files.sweep(folder)
        return there or plan

    def find_plan(self) -> Plan | None:
        """The stored plan, None where the stage was never prepared. Raises StoreError where it is damaged."""
        data = files.read_bytes(self._at("_plan.json"))
        if data is None:
            return None
        try:
            return Plan.from_json(data)
        except ValueError as error:
            raise StoreError(
                f"{self._at('_plan.json')} is damaged; delete the folder {self.uri} and run again"
            ) from error

    def plan(self) -> Plan:
        """The stored plan. Raises StoreError where there is none."""
        plan = self.find_plan()
        if plan is None:
            raise StoreError(
                f"there is no stage {self.name} in {self.run}; run `medad screen DATA --out {self.run}` first"
            )
        return plan

    # --- parts ------------------------------------------------------------------------------------------------------

    def pending(self) -> list[int]:
        """Numbers of the planned parts that have no valid record, or whose file is not what its record says (sha256)."""
        plan = self.plan()
        found = []
        for part in plan.parts:
            fault = self._fault(plan, part)
            if fault is not None:
                found.append(part.number)
                if fault != "no record":
                    log.warning("%s part %d is made again: %s", self.name, part.number, fault)
        return found

    def write_part(
        self,
        number: int,
        rows: Rows,
        *,
        skipped: Sequence[Item] = (),
        failed: Sequence[Item] = (),
        seconds: float = 0.0,
        requested: int | None = None,
    ) -> PartRecord:
        """Write a part, then its record.

        `rows`: a table, or an iterable of record batches (tables) that is consumed as it is written; cases in the planned
        order, the rows of a case together, slice_index rising; one row group a case. Every planned input must either have
        rows, or be in `skipped` or `failed`. `requested`, where given, must be the number of planned inputs. Raises
        StoreError, and nothing is recorded then. Errors of whoever makes the rows pass through.
        """
        started = time.perf_counter()
        plan = self.plan()
        part = self._planned(plan, number)
        if requested not in (None, len(part.inputs)):
            raise StoreError(
                f"{self.name} part {number}: requested is {requested}, but {len(part.inputs)} inputs are planned"
            )
        # A part that is written again must not look complete meanwhile.
        self.forget(number)
        uri = self._part_at(number)
        with files.new_file(uri) as temporary:
            count, cases = write_groups(temporary, rows, self.schema, f"{self.name} part {number}")
            account(f"{self.name} part {number}", part, cases, skipped, failed)
            size, digest = temporary.stat().st_size, files.sha256_file(str(temporary))
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
        )
        files.write_bytes(self._record_at(number), record.to_json())
        return record

    def begin(self, number: int) -> None:
        """Note that a part is being made, until `leave` says that it is no more: what is noted and not being made killed its process, or shared it."""
        files.write_bytes(self._begun_at(number), b"")

    def leave(self, number: int) -> None:
        """The part is not being made any more, whatever became of it."""
        files.remove(self._begun_at(number))

    def was_begun(self, number: int) -> bool:
        """Whether a process ended in the middle of this part."""
        return files.read_bytes(self._begun_at(number)) is not None

    def forget(self, number: int) -> None:
        """Let a part be pending again."""
        files.remove(self._at("_manifest.json"))
        files.remove(self._record_at(number))

    def records(self) -> dict[int, PartRecord]:
        """Sound records of this plan by part number, without reading the parts themselves."""
        plan = self.plan()
        found = {part.number: self._record(plan, part) for part in plan.parts}
        return {number: record for number, record in found.items() if record is not None}

    def verify(self, number: int) -> None:
        """Check a part against its record, sha256 included. Raises StoreError."""
        plan = self.plan()
        fault = self._fault(plan, self._planned(plan, number))
        if fault is not None:
            raise StoreError(
                f"{self.name} part {number} in {self.run}: {fault}; run the same command again to make it anew"
            )

    def done_inputs(self, number: int) -> tuple[str, ...]:
        """The cases of a part that have rows, in row order. Raises StoreError where the part is not done."""
        record = self._required(number)
        gone = {item.key for item in (*record.skipped, *record.failed)}
        return tuple(key for key in self.plan().parts[number].inputs if key not in gone)

    # --- completion -------------------------------------------------------------------------------------------------

    def finish(self) -> StageManifest:
        """Write the manifest once every part is valid (sha256 checked). A second call changes nothing. Raises StoreError."""
        plan = self.plan()
        pending = self.pending()
        if pending:
            raise StoreError(self._unfinished(plan, pending))
        records = self.records()
        manifest = manifest_of(plan, [records[part.number] for part in plan.parts])
        data = manifest.to_json()
        if files.read_bytes(self._at("_manifest.json")) != data:
            files.write_bytes(self._at("_manifest.json"), data)
        return manifest

    def manifest(self) -> StageManifest | None:
        """The manifest, None where the stage is not finished (or its manifest is damaged, which `finish` mends)."""
        data = files.read_bytes(self._at("_manifest.json"))
        if data is None:
            return None
        try:
            manifest = StageManifest.from_json(data)
        except ValueError:
            log.warning("%s is damaged; %s counts as unfinished", self._at("_manifest.json"), self.name)
            return None
        plan = self.find_plan()
        return manifest if plan is not None and manifest.fingerprint == plan.fingerprint else None

    def is_finished(self) -> bool:
        """Whether a manifest is there and every part has the size it says. Reads no part; `pending` checks sha256."""
        manifest = self.manifest()
        return manifest is not None and all(
            files.size_of(self._part_at(part.number)) == part.bytes for part in manifest.parts
        )

    def require_finished(self) -> StageManifest:
        """The manifest of a finished stage. Raises StoreError saying what is missing and how to get it."""
        manifest = self.manifest() if self.is_finished() else None
        if manifest is None:
            raise StoreError(self._unfinished(self.plan(), self.pending()))
        return manifest

    def progress(self) -> Progress:
        """How far the stage is; cheap, for status lines. Raises StoreError where it was never prepared."""
        records = list(self.records().values())
        return Progress(
            stage=self.name,
            parts=len(self.plan().parts),
            parts_done=len(records),
            rows=sum(record.rows for record in records),
            requested=sum(len(part.inputs) for part in self.plan().parts),
            done=sum(record.done for record in records),
            skipped=sum(len(record.skipped) for record in records),
            failed=sum(len(record.failed) for record in records),
            seconds=sum(record.seconds for record in records),
            finished=self.is_finished(),
        )

    # --- reading ----------------------------------------------------------------------------------------------------

    def read_part(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of one recorded part. Raises StoreError where it is not done, or not as long as its record says."""
        self._required(number)
        return read_table(self._part_at(number), columns)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of all parts in order. Raises StoreError where a part is not done."""
        fields = [self.schema.field(name) for name in columns or self.schema.names]
        tables = [self.read_part(part.number, columns) for part in self.plan().parts]
        return pa.concat_tables(tables) if tables else pa.schema(fields).empty_table()

    def read_case(self, case_id: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of one case, from its own row group; none where it was skipped or failed. Raises StoreError where unknown."""
        for part in self.plan().parts:
            if case_id in part.inputs:
                self._required(part.number)
                return read_table(self._part_at(part.number), columns, case_id)
        raise StoreError(f"there is no case {case_id!r} in stage {self.name} of {self.run}")

    # --- within -----------------------------------------------------------------------------------------------------

    def _at(self, name: str) -> str:
        return files.join(self.uri, name)

    def _part_at(self, number: int) -> str:
        return self._at(f"part-{number:05d}.parquet")

    def _begun_at(self, number: int) -> str:
        return self._at(f"_parts/{number:05d}.begun")

    def _record_at(self, number: int) -> str:
        return files.join(self.uri, "_parts", f"{number:05d}.json")

    def _planned(self, plan: Plan, number: int) -> PartPlan:
        if not 0 <= number < len(plan.parts):
            raise StoreError(f"stage {self.name} in {self.run} has {len(plan.parts)} parts; there is no part {number}")
        return plan.parts[number]

    def _record(self, plan: Plan, part: PartPlan) -> PartRecord | None:
        data = files.read_bytes(self._record_at(part.number))
        if data is None:
            return None
        try:
            record = PartRecord.from_json(data)
        except ValueError:
            log.warning("%s is damaged; its part is made again", self._record_at(part.number))
            return None
        ours = (
            record.plan_sha256 == plan.sha256 and record.number == part.number and record.requested == len(part.inputs)
        )
        return record if ours else None

    def _required(self, number: int) -> PartRecord:
        plan = self.plan()
        record = self._record(plan, self._planned(plan, number))
        if record is None or files.size_of(self._part_at(number)) != record.bytes:
            raise StoreError(self._unfinished(plan, [number]))
        return record

    def _fault(self, plan: Plan, part: PartPlan) -> str | None:
        """Why a part does not count, None for a good one."""
        record = self._record(plan, part)
        if record is None:
            return "no record"
        size = files.size_of(self._part_at(part.number))
        if size is None:
            return "its file is missing"
        if size != record.bytes or files.sha256_file(self._part_at(part.number)) != record.sha256:
            return "its file is not the one that was recorded"
        return None

    def _unfinished(self, plan: Plan, pending: Sequence[int]) -> str:
        shown = ", ".join(map(str, pending[:8])) + (", …" if len(pending) > 8 else "")
        missing = f"part {shown} of {len(plan.parts)} parts pending" if pending else "no manifest"
        return f"stage {self.name} in {self.run} is not finished ({missing}); run the same command again to go on"

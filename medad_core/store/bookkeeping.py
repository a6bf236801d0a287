"""The bookkeeping of one stage: its plan, part records and manifest. Each file is read once.

One decision: what was read is cached with the stamp of its file, and read again only if the stamp has changed. Then
each look at a stage of 25,000 parts costs one listing of a folder. A manifest replaces all records that are older than
it, so a finished stage costs one file.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from medad_core.errors import StoreError
from medad_core.store import files, listing
from medad_core.store.listing import FileStamp
from medad_core.store.records import PartRecord, Plan, StageManifest, record_name

log = logging.getLogger(__name__)
PLAN, MANIFEST, PARTS = "_plan.json", "_manifest.json", "_parts"
_NOTE = re.compile(r"(\d+)\.begun")


class Bookkeeping:
    """Plan, records and manifest in the folder `uri` of a stage. Safe for one thread at a time."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._plan: Plan | None = None
        self._plan_stamp: FileStamp | None = None
        self._records: dict[int, tuple[FileStamp, PartRecord | None]] = {}
        self._manifest: tuple[FileStamp, StageManifest | None] | None = None

    # --- plan -------------------------------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan | None:
        """The plan as last read. If it was never read, it is read now."""
        return self._plan or self.read_plan()

    def read_plan(self) -> Plan | None:
        """The plan that is stored now, None if there is none. Raises StoreError if it is damaged."""
        stamp = listing.stamp_of(self._at(PLAN))
        if stamp is not None and stamp == self._plan_stamp and stamp.identity:
            return self._plan
        data = None if stamp is None else files.read_bytes(self._at(PLAN))
        if data is None:
            self._keep_plan(None, None)
            return None
        try:
            self._keep_plan(Plan.from_json(data), stamp)
        except ValueError as error:
            raise StoreError(f"{self._at(PLAN)} is damaged; delete the folder {self.uri} and run again") from error
        return self._plan

    def write_first_plan(self, plan: Plan) -> Plan:
        """Write the plan of a new stage; returns it, or that of another command that was faster. Raises StoreError."""
        files.make_folder(self._at(PARTS))
        if files.write_new(self._at(PLAN), plan.to_json()):
            self._keep_plan(plan, listing.stamp_of(self._at(PLAN)))
        return self.read_plan() or plan

    def write_plan(self, plan: Plan) -> None:
        """Write the plan of a stage, replacing another one. Raises StoreError."""
        files.make_folder(self._at(PARTS))
        files.write_bytes(self._at(PLAN), plan.to_json())
        self._keep_plan(plan, listing.stamp_of(self._at(PLAN)))

    def replace_plan(self, plan: Plan) -> None:
        """Replace the plan. Records of parts with the same inputs are written again for the new plan, before it.

        A second call after a kill finds the records that were written, and goes on. Raises StoreError.
        """
        before = self.plan
        if before is None or before == plan:
            return
        files.remove(self._at(MANIFEST))
        for part in before.parts:
            record = self._raw_record(part.number)
            if record is None:
                continue
            has_same_inputs = plan.parts[part.number : part.number + 1] == (part,)
            belongs = _belongs(record, before, part.number) or (has_same_inputs and _belongs(record, plan, part.number))
            if not has_same_inputs or not belongs:
                files.remove(self._record_at(part.number))
            elif record.plan_sha256 != plan.sha256:
                self.write_record(record.replace(plan_sha256=plan.sha256))
        self.write_plan(plan)

    def _raw_record(self, number: int) -> PartRecord | None:
        """The record of a part, of whatever plan; None if there is none, or it is damaged."""
        data = files.read_bytes(self._record_at(number))
        try:
            return None if data is None else PartRecord.from_json(data)
        except ValueError:
            return None

    def _keep_plan(self, plan: Plan | None, stamp: FileStamp | None) -> None:
        if plan != self._plan:
            self._records.clear()
            self._manifest = None
        self._plan = plan
        self._plan_stamp = stamp

    # --- records ----------------------------------------------------------------------------------------------------

    def records(self, plan: Plan) -> dict[int, PartRecord]:
        """The valid records of `plan` by part number, in part order."""
        stamps = listing.list_files(self._at(PARTS))
        self._forget_absent(stamps)
        manifest_stamp, manifest = self._stamped_manifest(plan)
        unread = []
        for part in plan.parts:
            name = record_name(part.number)
            stamp = stamps.get(name)
            kept = self._records.get(part.number)
            if stamp is None or (kept is not None and kept[0] == stamp and stamp.identity):
                continue
            if manifest_stamp and manifest and stamp.modified_ns < manifest_stamp.modified_ns:
                self._records[part.number] = (stamp, manifest.parts[part.number])
            else:
                unread.append(name)
        for name, data in listing.read_many(self._at(PARTS), unread):
            number = int(name.removesuffix(".json"))
            self._records[number] = (stamps[name], self._parsed(plan, number, data))
        kept_records = ((number, self._records[number][1]) for number in sorted(self._records))
        return {number: record for number, record in kept_records if record is not None}

    def _forget_absent(self, stamps: Mapping[str, FileStamp]) -> None:
        absent = [number for number in self._records if record_name(number) not in stamps]
        for number in absent:
            del self._records[number]

    def record(self, plan: Plan, number: int) -> PartRecord | None:
        """The valid record of one part, None if there is none. Looks at its file only."""
        stamp = listing.stamp_of(self._record_at(number))
        if stamp is None:
            return None
        kept = self._records.get(number)
        if kept is None or kept[0] != stamp or not stamp.identity:
            data = files.read_bytes(self._record_at(number))
            kept = self._records[number] = (stamp, self._parsed(plan, number, data))
        return kept[1]

    def write_record(self, record: PartRecord) -> None:
        """Write the record of a complete part. Raises StoreError."""
        files.write_bytes(self._record_at(record.number), record.to_json())

    def remove_record(self, number: int) -> None:
        """Make a part, and so the stage, unfinished again. Raises StoreError."""
        files.remove(self._at(MANIFEST))
        files.remove(self._record_at(number))

    def _parsed(self, plan: Plan, number: int, data: bytes | None) -> PartRecord | None:
        if data is None:
            return None
        try:
            record = PartRecord.from_json(data)
        except ValueError:
            log.warning("%s is damaged; its part is made again", self._record_at(number))
            return None
        return record if _belongs(record, plan, number) else None

    # --- manifest ---------------------------------------------------------------------------------------------------

    def manifest(self, plan: Plan) -> StageManifest | None:
        """The manifest of `plan`; None if the stage is not finished, or its manifest is damaged."""
        return self._stamped_manifest(plan)[1]

    def whole_manifest(self, plan: Plan) -> StageManifest | None:
        """The manifest if the files of all parts and records exist, else None. Looks at file names only."""
        manifest = self.manifest(plan)
        if manifest is None:
            return None
        has_records = plan.record_names <= listing.list_names(self._at(PARTS))
        has_parts = plan.part_names <= listing.list_names(self.uri)
        return manifest if has_records and has_parts else None

    def write_manifest(self, manifest: StageManifest) -> None:
        """Write the manifest, unless an equal one is stored. Raises StoreError."""
        data = manifest.to_json()
        if files.read_bytes(self._at(MANIFEST)) != data:
            files.write_bytes(self._at(MANIFEST), data)

    def _stamped_manifest(self, plan: Plan) -> tuple[FileStamp | None, StageManifest | None]:
        stamp = listing.stamp_of(self._at(MANIFEST))
        if stamp is None:
            self._manifest = None
            return None, None
        if self._manifest is None or self._manifest[0] != stamp or not stamp.identity:
            self._manifest = (stamp, self._read_manifest(plan))
        return self._manifest

    def _read_manifest(self, plan: Plan) -> StageManifest | None:
        data = files.read_bytes(self._at(MANIFEST))
        if data is None:
            return None
        try:
            manifest = StageManifest.from_json(data)
        except ValueError:
            log.warning("%s is damaged; its stage counts as unfinished", self._at(MANIFEST))
            return None
        numbers = [record.number for record in manifest.parts]
        whole = manifest.fingerprint == plan.fingerprint and numbers == list(range(len(plan.parts)))
        return manifest if whole and all(_belongs(record, plan, record.number) for record in manifest.parts) else None

    # --- notes of unfinished parts ----------------------------------------------------------------------------------

    def write_note(self, number: int) -> None:
        """Note that a part is being made. Raises StoreError."""
        files.write_bytes(self._note_at(number), b"")

    def remove_note(self, number: int) -> None:
        """Remove the note: the part is no longer being made. Raises StoreError."""
        files.remove(self._note_at(number))

    def noted(self) -> set[int]:
        """The parts that have a note."""
        matches = (_NOTE.fullmatch(name) for name in listing.list_files(self._at(PARTS)))
        return {int(match[1]) for match in matches if match}

    # --- paths ------------------------------------------------------------------------------------------------------

    def _at(self, name: str) -> str:
        return files.join(self.uri, name)

    def _record_at(self, number: int) -> str:
        return files.join(self.uri, PARTS, record_name(number))

    def _note_at(self, number: int) -> str:
        return files.join(self.uri, PARTS, f"{number:05d}.begun")


def _belongs(record: PartRecord, plan: Plan, number: int) -> bool:
    """Whether a record belongs to this plan and this part."""
    requested = len(plan.parts[number].inputs)
    return record.plan_sha256 == plan.sha256 and record.number == number and record.requested == requested

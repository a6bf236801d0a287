"""The bookkeeping files of a stage as models: plan, part records and manifest.

One decision: every input is counted. `requested = done + skipped + failed` is checked whenever a record or manifest is
made or read, so a wrong count cannot be passed on. The inputs are cases, and their keys are case ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Record(BaseModel):
    """A frozen JSON record that accepts no unknown field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> bytes:
        """The same object always gives the same bytes."""
        return self.model_dump_json(indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Parse a record. Raises ValueError (pydantic's ValidationError) if it is not valid."""
        return cls.model_validate_json(data, strict=True)


class Item(Record):
    """A case that has no rows, with the reason in one line."""

    key: str
    reason: str = Field(min_length=1)


class PartPlan(Record):
    """A part and its inputs (case ids, in row order)."""

    number: int = Field(ge=0)
    inputs: tuple[str, ...]


class Plan(Record):
    """The parts that a stage will make. Written first; a resumed run reads it.

    It is replaced only if a case of the stage before lost its rows, or has rows now.
    """

    stage: str
    fingerprint: dict[str, str]
    parts: tuple[PartPlan, ...]

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if [part.number for part in self.parts] != list(range(len(self.parts))):
            raise ValueError(f"parts of {self.stage} are not numbered 0, 1, 2, …")
        inputs = [key for part in self.parts for key in part.inputs]
        if len(set(inputs)) != len(inputs):
            twice = next(key for key in inputs if inputs.count(key) > 1)
            raise ValueError(f"input {twice!r} of {self.stage} is planned twice")
        return self

    @cached_property
    def fingerprint_sha256(self) -> str:
        """Hash of the fingerprint, hex."""
        return fingerprint_of(self.fingerprint)

    @cached_property
    def sha256(self) -> str:
        """Hash of this plan, hex; part records contain it."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @cached_property
    def part_of(self) -> dict[str, int]:
        """The number of the part that every case is planned in."""
        return {case_id: part.number for part in self.parts for case_id in part.inputs}

    @cached_property
    def part_names(self) -> frozenset[str]:
        """The file names of all parts."""
        return frozenset(part_name(part.number) for part in self.parts)

    @cached_property
    def record_names(self) -> frozenset[str]:
        """The file names of all part records."""
        return frozenset(record_name(part.number) for part in self.parts)


class _Counts(Record):
    rows: int = Field(ge=0)
    requested: int = Field(ge=0)
    done: int = Field(ge=0)
    skipped: tuple[Item, ...]
    failed: tuple[Item, ...]
    seconds: float = Field(ge=0)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.requested != self.done + len(self.skipped) + len(self.failed):
            raise ValueError(
                f"counts do not add up: requested {self.requested}, done {self.done}, "
                f"skipped {len(self.skipped)}, failed {len(self.failed)}"
            )
        return self


class PartRecord(_Counts):
    """Written after its part; a part without a record is ignored. `plan_sha256` is the hash of its plan."""

    number: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str
    plan_sha256: str


class StageManifest(_Counts):
    """Written last; its presence means that the stage is finished. `seconds` is the sum over the parts."""

    stage: str
    fingerprint: dict[str, str]
    fingerprint_sha256: str
    parts: tuple[PartRecord, ...]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.fingerprint_sha256 != fingerprint_of(self.fingerprint):
            raise ValueError("fingerprint_sha256 is not that of the fingerprint")
        for name in ("rows", "requested", "done"):
            if getattr(self, name) != sum(getattr(part, name) for part in self.parts):
                raise ValueError(f"{name} is not the sum over the parts")
        return self


class StageProgress(Record):
    """The progress of a stage, from its records alone: `parts_done` of `parts`, with their cases and rows."""

    stage: str
    parts: int
    parts_done: int
    rows: int
    requested: int
    done: int
    skipped: int
    failed: int
    seconds: float
    finished: bool


def part_name(number: int) -> str:
    """Such as `part-00007.parquet`."""
    return f"part-{number:05d}.parquet"


def record_name(number: int) -> str:
    """Such as `00007.json`."""
    return f"{number:05d}.json"


def fingerprint_of(mapping: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a JSON-like mapping, independent of the order of its keys."""
    text = json.dumps(mapping, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def manifest_of(plan: Plan, records: Sequence[PartRecord]) -> StageManifest:
    """The manifest of a plan whose parts are all recorded, in part order."""
    return StageManifest(
        stage=plan.stage,
        fingerprint=plan.fingerprint,
        fingerprint_sha256=plan.fingerprint_sha256,
        parts=tuple(records),
        rows=sum(record.rows for record in records),
        requested=sum(record.requested for record in records),
        done=sum(record.done for record in records),
        skipped=tuple(item for record in records for item in record.skipped),
        failed=tuple(item for record in records for item in record.failed),
        seconds=round(sum(record.seconds for record in records), 3),
    )

"""The bookkeeping files of a stage as records: plan, part records and manifest.

One decision: every input is counted. `requested = done + skipped + failed` is checked whenever a record or manifest is
made or read, so a wrong count cannot be passed on. The inputs are cases, and their keys are case ids.

Records are msgspec's structs. A cohort of 100,000 cases has a million of them, which as pydantic models take three
times as long to read and as much memory again, and which Python's garbage collector would visit again and again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Self

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A frozen JSON record that accepts no unknown field. Types and bounds are checked when it is parsed.

    Its file begins with a seal, the SHA-256 of what stands after it. So a digit that changed on the disk, or by hand,
    is noticed although the JSON is still valid. Files of earlier versions have no seal.
    """

    def body(self) -> bytes:
        """The record as JSON, without its seal. The same object always gives the same bytes."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    def to_json(self) -> bytes:
        """The content of its file."""
        after = self.body().removeprefix(b"{")
        return b'{\n "seal": "%b",%b' % (_digest(after), after)

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Parse the content of a file. Raises ValueError if it is not valid, or not what was sealed."""
        sealed = _SEAL.match(data)
        if sealed is not None:
            after = data[sealed.end() :]
            if sealed[1] != _digest(after):
                raise ValueError("it is not what was written: its seal is of something else")
            data = b"{" + after
        try:
            return msgspec.json.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from error

    def replace(self, **changes: Any) -> Self:
        """The same record with other values of the given fields."""
        return msgspec.structs.replace(self, **changes)


_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=True, separators=(",", ":"))  # made once for 100,000 cases
_SEAL = re.compile(rb'\{\s*"seal":\s*"([0-9a-f]{64})",')


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


class Item(Record, frozen=True):
    """A case that has no rows, with the reason in one line."""

    key: str
    reason: Annotated[str, msgspec.Meta(min_length=1)]


class PartPlan(Record, frozen=True):
    """A part and its inputs (case ids, in row order)."""

    number: Count
    inputs: tuple[str, ...]


class Plan(Record, frozen=True, dict=True, gc=True):
    """The parts that a stage will make. Written first; a resumed run reads it.

    It is replaced only if a case of the stage before lost its rows, or has rows now.
    """

    stage: str
    fingerprint: dict[str, str]
    parts: tuple[PartPlan, ...]

    def __post_init__(self) -> None:
        if [part.number for part in self.parts] != list(range(len(self.parts))):
            raise ValueError(f"parts of {self.stage} are not numbered 0, 1, 2, …")
        inputs = [key for part in self.parts for key in part.inputs]
        if len(set(inputs)) != len(inputs):
            twice = next(key for key in inputs if inputs.count(key) > 1)
            raise ValueError(f"input {twice!r} of {self.stage} is planned twice")

    @cached_property
    def fingerprint_sha256(self) -> str:
        """Hash of the fingerprint, hex."""
        return fingerprint_of(self.fingerprint)

    @cached_property
    def sha256(self) -> str:
        """Hash of this plan, hex; part records contain it."""
        return hashlib.sha256(self.body()).hexdigest()

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


class _Counts(Record, frozen=True):
    rows: Count
    requested: Count
    done: Count
    skipped: tuple[Item, ...]
    failed: tuple[Item, ...]
    seconds: Annotated[float, msgspec.Meta(ge=0)]

    def __post_init__(self) -> None:
        if self.requested != self.done + len(self.skipped) + len(self.failed):
            raise ValueError(
                f"counts do not add up: requested {self.requested}, done {self.done}, "
                f"skipped {len(self.skipped)}, failed {len(self.failed)}"
            )


class PartRecord(_Counts, frozen=True, omit_defaults=True):
    """Written after its part; a part without a record is ignored. `plan_sha256` is the hash of its plan.

    `made_with` says what made it where that is no part of the fingerprint: the LLM's engine. Others have none. `tag` is
    the tag that a store gave the uploaded part; on a disk there is none.
    """

    number: Count
    bytes: Count
    sha256: str
    plan_sha256: str
    made_with: dict[str, str] = {}
    tag: str = ""


class StageManifest(_Counts, frozen=True):
    """Written last; its presence means that the stage is finished. `seconds` is the sum over the parts."""

    stage: str
    fingerprint: dict[str, str]
    fingerprint_sha256: str
    parts: tuple[PartRecord, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fingerprint_sha256 != fingerprint_of(self.fingerprint):
            raise ValueError("fingerprint_sha256 is not that of the fingerprint")
        for name in ("rows", "requested", "done"):
            if getattr(self, name) != sum(getattr(part, name) for part in self.parts):
                raise ValueError(f"{name} is not the sum over the parts")


class StageProgress(Record, frozen=True):
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
    return hashlib.sha256(_CANONICAL.encode(mapping).encode()).hexdigest()


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

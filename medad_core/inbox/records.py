"""What a cohort writes about itself: studies as they lay in the inbox, a batch's plan and its commit, the ledger."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medad_core.store.records import Record, fingerprint_of


class Stamp(Record):
    """How a file lay on disk: length in bytes, times in ns.

    A copying program cannot set ctime, so a file whose stamp is the same was not written to.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int = 0  # 0 in records of earlier versions, whose files are hashed once more


class StoredFile(Record):
    """A volume: `path` relative to the inbox, channel of a 4-D file, and the SHA-256 (hex) of the file."""

    path: str
    channel: int | None
    stamp: Stamp
    sha256: str


class Study(Record):
    """A case as it lies in the inbox."""

    case_id: str
    volume: StoredFile
    mask: StoredFile | None

    @property
    def content(self) -> str:
        """Hash of the bytes and their roles. Where the files lie and what they are called does not count."""
        roles = {"volume": [self.volume.sha256, self.volume.channel]}
        if self.mask is not None:
            roles["mask"] = [self.mask.sha256, self.mask.channel]
        return fingerprint_of(roles)

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """The volume, and the mask where there is one."""
        return (self.volume,) if self.mask is None else (self.volume, self.mask)


class PlannedStudy(Record):
    """A study that a batch screens.

    `revision` counts the contents of a case from 1, `attempt` the screenings of one content.
    """

    study: Study
    revision: int = Field(ge=1)
    attempt: int = Field(ge=1)


class BatchPlan(Record):
    """`_planned.json`: written once, before the batch begins; a batch that is resumed goes by it.

    In a batch whose studies went wrong before, each is a part of its own (`apart`), so that none takes others with it.
    """

    number: int = Field(ge=1)
    opened: str
    fingerprint: dict[str, str]
    studies: tuple[PlannedStudy, ...]
    apart: bool = False


class Screening(Record):
    """What became of one study in one batch. `reason` says why a rejected one has no rows."""

    case_id: str
    batch: int
    revision: int
    attempt: int
    content: str
    state: Literal["screened", "rejected"]
    reason: str | None
    slices: int


class Batch(Record):
    """`_batch.json`: the commit.

    `changed` are cases that do not count: at the end their files were no longer the planned ones, or could not be read.
    """

    number: int
    opened: str
    committed: str
    fingerprint: dict[str, str]
    predictions_sha256: str
    screenings: tuple[Screening, ...]
    changed: tuple[str, ...]


class CaseHistory(Record):
    """All screenings of a case, oldest first, and whether its files were in the inbox at the last scan."""

    present: bool
    screenings: tuple[Screening, ...]


class Ledger(Record):
    """`ledger.json`, written after each scan; `looked` is its time.

    `waiting` and `unusable` say why studies were not screened. `files` remembers contents, so that unchanged files are
    not read again.
    """

    inbox: str
    looked: str
    batches: tuple[int, ...]
    cases: dict[str, CaseHistory]
    waiting: dict[str, str]
    unusable: dict[str, str]
    files: dict[str, StoredFile]

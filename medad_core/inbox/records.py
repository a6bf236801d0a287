"""The bookkeeping files of a cohort as models: studies, the plan and the commit of a batch, the ledger."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from medad_core.store.listing import list_names
from medad_core.store.records import Record, fingerprint_of

LEDGER = "ledger.json"
PRUNED = "pruned.txt"  # in a batch whose stages were deleted
FromOne = Annotated[int, msgspec.Meta(ge=1)]


def is_cohort(folder: str) -> bool:
    """Whether `folder` belongs to an incremental cohort, not to a single run."""
    return not {"batches", LEDGER}.isdisjoint(list_names(folder))


class Stamp(Record, frozen=True):
    """The state of a file on disk: length in bytes, times in ns.

    A copying program cannot set ctime, so a file with an unchanged stamp was not written to.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int = 0  # 0 in records of earlier versions, whose files are hashed once more


class StoredFile(Record, frozen=True):
    """A volume: `path` relative to the inbox, channel of a 4-D file, and the SHA-256 (hex) of the file."""

    path: str
    channel: int | None
    stamp: Stamp
    sha256: str


class Study(Record, frozen=True):
    """A case as it is in the inbox."""

    case_id: str
    volume: StoredFile
    mask: StoredFile | None
    patient: str | None = None  # this and what follows is absent in records of earlier versions
    visit: str | None = None
    layout: str | None = None
    tumour_labels: tuple[int, ...] | None = None
    pathology: str | None = None
    date: str | None = None

    @property
    def content(self) -> str:
        """Hash of the bytes and their roles. It does not depend on their paths."""
        roles = {"volume": [self.volume.sha256, self.volume.channel]}
        if self.mask is not None:
            roles["mask"] = [self.mask.sha256, self.mask.channel]
        return fingerprint_of(roles)

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """The volume, and the mask if there is one."""
        return (self.volume,) if self.mask is None else (self.volume, self.mask)


class PlannedStudy(Record, frozen=True):
    """A study that a batch screens.

    `revision` counts the contents of a case from 1, `attempt` the screenings of one content.
    """

    study: Study
    revision: FromOne
    attempt: FromOne


class BatchPlan(Record, frozen=True):
    """`_planned.json`: written once, before the batch begins; a resumed batch uses it.

    If the studies of a batch failed before, each gets its own part (`apart`), so that none affects the others.
    """

    number: FromOne
    opened: str
    fingerprint: dict[str, str]
    studies: tuple[PlannedStudy, ...]
    apart: bool = False


class Screening(Record, frozen=True):
    """The result of one study in one batch. `reason` says why a rejected study has no rows."""

    case_id: str
    batch: int
    revision: int
    attempt: int
    content: str
    state: Literal["screened", "rejected"]
    reason: str | None
    slices: int


class Batch(Record, frozen=True):
    """`_batch.json`: the commit.

    `changed` lists cases that do not count: their files changed during the batch, or could not be read.
    """

    number: int
    opened: str
    committed: str
    fingerprint: dict[str, str]
    predictions_sha256: str
    screenings: tuple[Screening, ...]
    changed: tuple[str, ...]


class View(Record, frozen=True):
    """`_view.json`: the batches in the cohort's predictions, and the SHA-256 (hex) of that file."""

    batches: tuple[int, ...]
    sha256: str


class CaseHistory(Record, frozen=True):
    """All screenings of a case, oldest first, and whether its files were in the inbox at the last scan."""

    present: bool
    screenings: tuple[Screening, ...]


class Ledger(Record, frozen=True):
    """`ledger.json`, written after each scan; `looked` is the time of the scan.

    `waiting` and `unusable` have the reasons why studies were not screened. `files` has the hashes of the last scan, so
    that unchanged files are not read again.
    """

    inbox: str
    looked: str
    batches: tuple[int, ...]
    cases: dict[str, CaseHistory]
    waiting: dict[str, str]
    unusable: dict[str, str]
    files: dict[str, StoredFile]

    def body(self) -> bytes:
        """One line: that of 100,000 cases has 75 MB, and is written twice a night."""
        return msgspec.json.encode(self)[:-1] + b"\n}\n"

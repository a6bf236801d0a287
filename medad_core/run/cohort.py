"""The cases of a run: `RUN/cohort.json`, written once before the first stage.

One decision: the cases, their files, their split and the reasons of rejected cases are determined before any volume is
read, and written to one file. Every later stage and every resumed run use this file. If the data files are still the
same, a resumed run uses it as it is, and opens no volume and no mask.
"""

from __future__ import annotations

import os
from typing import Any, Literal

from medad_core.data.cases import EARLIER, Case, VolumeRef
from medad_core.data.names import patient_of
from medad_core.errors import StoreError, first_line
from medad_core.store import fingerprint_of, join
from medad_core.store.files import make_folder, read_bytes, write_bytes
from medad_core.store.objects import is_object
from medad_core.store.records import Record

NAME = "cohort.json"
UNLABELLED = "screen"


class File(Record, frozen=True):
    """A volume: `path` relative to the cohort's root, channel of a 4-D file.

    `size` in bytes counts in the cohorts of experiments and batches, and in those of runs of earlier versions. Other
    runs have none: they know their files by content (`medad_core.run.inputs`).
    """

    path: str
    channel: int | None
    size: int | None = None

    def facts(self) -> dict[str, Any]:
        """What counts of a file."""
        facts: dict[str, Any] = {"path": self.path, "channel": self.channel}
        if self.size is not None:
            facts["size"] = self.size
        return facts


class Member(Record, frozen=True):
    """One case of the cohort. `rejected` is the reason why it cannot be used, None for a usable case.

    `patient`, `visit` and `layout` say who it is of, and which rule says so. `tumour_labels` are the values of the mask
    that mean tumour, None where all above 0 do. `levels` is "brain" where the slice range is understood as levels of
    the brain, None where it is indices. `pathology` and `date` (ISO) are what a table says of the case. Cohorts of
    earlier versions have none of them.
    """

    case_id: str
    split: str
    phantom: bool = False
    volume: File | None = None
    mask: File | None = None
    rejected: str | None = None
    patient: str | None = None
    visit: str | None = None
    layout: str | None = None
    tumour_labels: tuple[int, ...] | None = None
    levels: Literal["brain"] | None = None
    pathology: str | None = None
    date: str | None = None

    @property
    def patient_id(self) -> str:
        """The patient: visits of one share it."""
        return self.patient or patient_of(self.case_id)

    def facts(self) -> dict[str, Any]:
        """What determines the rows of the case. Fields that earlier versions did not know count where they are set."""
        facts: dict[str, Any] = {
            "case_id": self.case_id,
            "split": self.split,
            "phantom": self.phantom,
            "volume": None if self.volume is None else self.volume.facts(),
            "mask": None if self.mask is None else self.mask.facts(),
            "rejected": self.rejected,
        }
        if self.tumour_labels is not None:
            facts["tumour_labels"] = self.tumour_labels
        if self.levels is not None:
            facts["levels"] = self.levels
        return facts


class Cohort(Record, frozen=True):
    """All cases of a run, sorted by case_id.

    The splits are dealt once, for a new run. A mask that is corrected later changes its rows and its labels, but no
    split, even if its patient now has tumour-free slices, or has none any more.
    """

    root: str
    members: tuple[Member, ...]

    @property
    def content(self) -> str:
        """Hash of the members: files, roles, splits. The root is not in it: a moved cohort is the same."""
        return fingerprint_of({member.case_id: member.facts() for member in self.members})

    @property
    def has_sizes(self) -> bool:
        """Whether the sizes of files count."""
        return any(file is not None and file.size is not None for file in (m.volume for m in self.members))

    def case(self, member: Member, modality: str) -> Case:
        """A usable member as a `Case` for `read_slices`."""

        def ref(file: File) -> VolumeRef:
            return VolumeRef(place_of(self.root, file.path), file.channel)

        assert member.volume is not None, f"{member.case_id} has no volume"
        return Case(
            case_id=member.case_id,
            volumes={modality: ref(member.volume)},
            mask=ref(member.mask) if member.mask else None,
            patient=member.patient_id,
            visit=member.visit or "",
            layout=member.layout or EARLIER,
            tumour_labels=member.tumour_labels,
            levels=member.levels or "index",
            pathology=member.pathology or "",
            date=member.date or "",
        )

    def at(self, root: str) -> Cohort:
        """The same cohort with a different root."""
        return self.replace(root=root)


def cohort_of(run: str) -> Cohort:
    """The cohort of a run. Raises StoreError if there is none, or it is damaged."""
    cohort = find_stored(run)
    if cohort is None:
        raise StoreError(f"{run} has no cohort.json; make a run with `medad screen DATA --out {run}`")
    return cohort


def find_stored(run: str) -> Cohort | None:
    """The stored cohort of a run, None for a new run. Raises StoreError if it is damaged."""
    path = join(run, NAME)
    data = read_bytes(path)
    try:
        return None if data is None else Cohort.from_json(data)
    except ValueError as error:
        raise StoreError(
            f"{path} is damaged ({first_line(error)}); bring it back from a backup, or delete it and run "
            f"`medad screen DATA --out {run}` again"
        ) from error


def write_cohort(run: str, cohort: Cohort) -> None:
    """Write `RUN/cohort.json`, replacing an earlier one. Raises StoreError."""
    make_folder(run)
    write_bytes(join(run, NAME), cohort.to_json())


def settle_cohort(run: str, cohort: Cohort) -> Cohort:
    """Write `RUN/cohort.json`, or check that the stored one has the same cases.

    Raises StoreError naming the cases that changed.
    """
    stored = find_stored(run)
    check_same_cases(run, stored, cohort)
    keep_cohort(run, stored, cohort)
    return cohort


def check_same_cases(run: str, stored: Cohort | None, cohort: Cohort) -> None:
    """Raise StoreError naming the cases that changed, if the stored cohort has other ones."""
    if stored is not None and stored.content != cohort.content:
        changed = _changed(stored, cohort)
        some = ", ".join(changed[:5]) + (" …" if len(changed) > 5 else "")
        raise StoreError(
            f"{run} was made of other data: {some} differ (files, splits, or labels that mean tumour); "
            "choose another --out for the data as it is now"
        )


def keep_cohort(run: str, stored: Cohort | None, cohort: Cohort) -> None:
    """Write `RUN/cohort.json` if there is none, or data or patients have other names. Raises StoreError."""
    if stored is None or stored is not cohort:
        write_cohort(run, cohort)


def below(root: str, path: str) -> str:
    """`path` relative to `root`; the URI of an object elsewhere stays as it is."""
    above = f"{root}/"
    if path.startswith(above) or is_object(path):
        return path.removeprefix(above)
    return path if is_object(root) else os.path.relpath(path, root)


def place_of(root: str, path: str) -> str:
    """Where the file is whose `path` is relative to `root`; the opposite of `below`."""
    return path if is_object(path) or path.startswith("/") else f"{root}/{path}"


def _changed(before: Cohort, after: Cohort) -> list[str]:
    old = {member.case_id: member.facts() for member in before.members}
    new = {member.case_id: member.facts() for member in after.members}
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))

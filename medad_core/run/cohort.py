"""Who is screened: `RUN/cohort.json`, written once before the first stage.

One decision: cases, their files, their split and the reasons of those that cannot be used are settled before any volume is
read, in one file that every later stage and every resumed run goes by.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import nibabel
from pydantic import BaseModel, ConfigDict

from medad_core.config import DataSettings
from medad_core.data.cases import Case, VolumeRef
from medad_core.data.discovery import discover
from medad_core.data.names import patient_of
from medad_core.data.nifti import open_nifti
from medad_core.data.split import split_cases
from medad_core.errors import CaseError, StoreError
from medad_core.store import fingerprint_of, join, write_text
from medad_core.store.files import make_folder, read_bytes

log = logging.getLogger(__name__)
PHANTOM_NOTE = b"medad phantom"
UNLABELLED = "screen"


class File(BaseModel):
    """A volume: `path` relative to the cohort's root, channel of a 4-D file, size in bytes."""

    model_config = ConfigDict(frozen=True)
    path: str
    channel: int | None
    size: int


class Member(BaseModel):
    """One case of the cohort. `rejected` is the reason why it cannot be used, None for a usable one."""

    model_config = ConfigDict(frozen=True)
    case_id: str
    split: str
    phantom: bool = False
    volume: File | None = None
    mask: File | None = None
    rejected: str | None = None


class Cohort(BaseModel):
    """All cases of a run, sorted by case_id."""

    model_config = ConfigDict(frozen=True)
    root: str
    members: tuple[Member, ...]

    @property
    def content(self) -> str:
        """Hash of which files of which sizes play which part; the root does not count, so a moved cohort is the same cohort."""
        return fingerprint_of({member.case_id: member.model_dump() for member in self.members})

    def member(self, case_id: str) -> Member:
        return next(member for member in self.members if member.case_id == case_id)

    def case(self, member: Member, modality: str) -> Case:
        """A usable member as `read_slices` wants it."""

        def ref(file: File) -> VolumeRef:
            return VolumeRef(str(Path(self.root) / file.path), file.channel)

        return Case(member.case_id, {modality: ref(member.volume)}, ref(member.mask) if member.mask else None)


def find_cohort(data: str | Path, settings: DataSettings) -> Cohort:
    """Discover cases below `data`, look for tumour-free slices in their masks, and split patients.

    Raises UsageError where `data` is no folder of cases.
    """
    root = Path(data).resolve()
    found = discover(root, settings.modality)
    facts = {case.case_id: _has_tumour_free(case, settings) for case in found.cases}
    splits = _split_patients(facts, settings)
    members = [_member(root, case, settings.modality, splits[case.case_id]) for case in found.cases]
    taken = {member.case_id for member in members}
    for case in found.rejected:
        members.append(Member(case_id=_untaken(case.case_id, taken), split=UNLABELLED, rejected=case.reason))
    return Cohort(root=str(root), members=tuple(sorted(members, key=lambda member: member.case_id)))


def members_of(root: Path, cases: Sequence[Case], settings: DataSettings) -> Cohort:
    """A cohort of the given cases of an inbox. Nothing is trained on what comes into an inbox one by one, so nobody is dealt to a split."""
    return Cohort(root=str(root), members=tuple(_member(root, case, settings.modality, UNLABELLED) for case in cases))


def _untaken(case_id: str, taken: set[str]) -> str:
    """`case_id`, numbered where another folder of the cohort has the same name: a rejected case must not stop the others."""
    name, number = case_id, 2
    while name in taken:
        name, number = f"{case_id} ({number})", number + 1
    taken.add(name)
    return name


def _split_patients(facts: dict[str, bool | None], settings: DataSettings) -> dict[str, str]:
    """Every visit of a patient goes where the patient goes; the unlabelled are apart."""
    patients: dict[str, bool] = {}
    for case_id, tumour_free in facts.items():
        if tumour_free is not None:
            patients[patient_of(case_id)] = patients.get(patient_of(case_id), False) or tumour_free
    share = settings.split
    dealt = split_cases(patients, ratios=(share.train, share.validation, share.test), seed=share.seed)
    return {case_id: UNLABELLED if fact is None else dealt[patient_of(case_id)] for case_id, fact in facts.items()}


def _has_tumour_free(case: Case, settings: DataSettings) -> bool | None:
    """Whether a labelled case has a slice without tumour in the range; None where it is unlabelled. A mask that cannot be read is judged later."""
    if case.mask is None:
        return None
    try:
        labels = open_nifti(case.case_id, case.mask).slices(settings.first_slice, settings.last_slice)
    except CaseError:
        return False
    return bool((~(labels > 0).any(axis=(1, 2))).any())


def _member(root: Path, case: Case, modality: str, split: str) -> Member:
    volume = case.volumes[modality]
    mask = _file(root, case.mask) if case.mask else None
    return Member(
        case_id=case.case_id, split=split, phantom=_is_phantom(volume.path), volume=_file(root, volume), mask=mask
    )


def _file(root: Path, ref: VolumeRef) -> File:
    return File(path=os.path.relpath(ref.path, root), channel=ref.channel, size=os.path.getsize(ref.path))


def _is_phantom(path: str) -> bool:
    try:
        return PHANTOM_NOTE in bytes(nibabel.load(path).header["descrip"].tobytes())
    except Exception:  # a file that nibabel cannot open is rejected with its reason when it is read
        return False


def cohort_of(run: str) -> Cohort:
    """The cohort of a run. Raises StoreError where there is none, or it is damaged."""
    cohort = _find_settled(run)
    if cohort is None:
        raise StoreError(f"{run} has no cohort.json; make a run with `medad screen DATA --out {run}`")
    return cohort


def _find_settled(run: str) -> Cohort | None:
    path = join(run, "cohort.json")
    data = read_bytes(path)
    try:
        return None if data is None else Cohort.model_validate_json(data)
    except ValueError as error:
        raise StoreError(
            f"{path} is damaged ({str(error).splitlines()[0]}); bring it back from a backup, or delete it and run `medad screen DATA --out {run}` again"
        ) from error


def settle_cohort(run: str, cohort: Cohort) -> Cohort:
    """Write `RUN/cohort.json`, or check that the one there is of the same cases. Raises StoreError naming what changed."""
    old = _find_settled(run)
    if old is not None:
        if old.content == cohort.content:
            if old.root != cohort.root:
                write_text(join(run, "cohort.json"), cohort.model_dump_json(indent=1))
            return cohort
        before, now = ({member.case_id: member for member in side.members} for side in (old, cohort))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        raise StoreError(
            f"{run} was made of other data: {', '.join(changed[:5])}{' …' if len(changed) > 5 else ''} differ; choose another --out for the data as it is now"
        )
    make_folder(run)
    write_text(join(run, "cohort.json"), cohort.model_dump_json(indent=1))
    return cohort

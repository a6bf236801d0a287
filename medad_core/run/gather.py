"""A cohort from what was discovered: members, their files, their splits; or the stored one, if nothing changed.

One decision: masks and headers are opened for a new cohort only. A resumed run compares names here, and the content of
its files with what it has read of them (`medad_core.run.staleness`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medad_core.config import DataSettings
from medad_core.data.cases import EARLIER, Case, Discovery, VolumeRef
from medad_core.data.mask import read_mask
from medad_core.data.nifti import read_header
from medad_core.data.read import read_slices
from medad_core.data.source import files_root, find_cases, settle_case
from medad_core.data.split import split_cases
from medad_core.errors import CaseError, InputError
from medad_core.run.cohort import UNLABELLED, Cohort, File, Member, below, check_same_cases
from medad_core.store.collector import collector_paused
from medad_core.store.listing import at_once
from medad_core.store.regular import facts_at

PHANTOM_NOTE = b"medad phantom"
VOLUMES_AT_ONCE = 4  # of a bucket; each may have some GiB
BoolArray = npt.NDArray[np.bool_]
FileFacts = tuple[str, int | None, int | None]  # path below the root, channel, size in bytes where it counts


@collector_paused()
def open_cohort(
    run: str, stored: Cohort | None, root: str, discovery: Discovery, settings: DataSettings, is_dealt: bool
) -> Cohort:
    """The cohort of what was discovered below `root`: the stored one if its files are the same, else a new one.

    `is_dealt`: the stored splits were dealt by these settings. Writes nothing. Raises StoreError naming the cases that
    changed.
    """
    if stored is not None and is_dealt and _has_files_of(stored, root, discovery, settings):
        return stored if stored.root == root else stored.at(root)
    cohort = make_cohort(root, discovery, settings, sized=stored is not None and stored.has_sizes)
    check_same_cases(run, stored, cohort)
    return cohort


def find_cohort(data: str | Path, settings: DataSettings, sized: bool = False) -> Cohort:
    """Discover cases below `data`, look for tumour-free slices in their masks, and split the patients.

    `sized`: the sizes of files count. Raises UsageError if `data` is not a folder of cases.
    """
    return make_cohort(files_root(data, settings), find_cases(data, settings), settings, sized)


def by_index(settings: DataSettings) -> DataSettings:
    """The settings of training and of reproductions, which count slices by index on every grid."""
    return settings.model_copy(update={"levels": "index"})


def make_cohort(root: str, discovery: Discovery, settings: DataSettings, sized: bool = False) -> Cohort:
    """The cohort of what was discovered below `root`. Opens every mask, and the header of every volume."""
    cases = list(at_once(lambda case: settle_case(case, settings), discovery.cases, root))
    tumour_free = at_once(lambda case: _has_tumour_free(case, settings), cases, root, most=VOLUMES_AT_ONCE)
    splits = _split_patients(list(zip(cases, tumour_free, strict=True)), settings)
    usable = list(at_once(lambda case: _member(root, case, settings, splits[case.case_id], sized), cases, root))
    return _sorted_cohort(root, usable, discovery)


def members_of(root: str, cases: Sequence[Case], settings: DataSettings) -> Cohort:
    """A cohort of the given cases of an inbox.

    Nothing is trained on cases from an inbox, so they belong to no split.
    """

    def member(case: Case) -> Member:
        return _member(root, settle_case(case, settings), settings, UNLABELLED, sized=True)

    return Cohort(root=root, members=tuple(at_once(member, cases, root)))


def _sorted_cohort(root: str, usable: Sequence[Member], discovery: Discovery) -> Cohort:
    members = list(usable)
    for case_id, reason in _rejected(discovery):
        members.append(Member(case_id=case_id, split=UNLABELLED, rejected=reason))
    return Cohort(root=root, members=tuple(sorted(members, key=lambda member: member.case_id)))


def _rejected(discovery: Discovery) -> Iterator[tuple[str, str]]:
    """Name and reason of each case that cannot be used; the names are unique."""
    taken = {case.case_id for case in discovery.cases}
    for case in discovery.rejected:
        yield _untaken(case.case_id, taken), case.reason


def _has_files_of(stored: Cohort, root: str, discovery: Discovery, settings: DataSettings) -> bool:
    """Whether `stored` has the files, and all that is said of cases, of `discovery`, apart from content and splits.

    In a run of an earlier version the sizes of files count, and it has neither patients nor labels.

    Plain values are compared, because making 100,000 members would take seconds.
    """
    discovered: dict[str, tuple[object, ...]] = {}
    sized = stored.has_sizes
    earlier = {member.case_id for member in stored.members if member.layout is None}
    for case in discovery.cases:
        mask = None if case.mask is None else _facts(root, case.mask, sized)
        said = None if case.case_id in earlier else _said(case, settings)
        discovered[case.case_id] = (_facts(root, case.volumes[settings.modality], sized), mask, None, said)
    for case_id, reason in _rejected(discovery):
        discovered[case_id] = (None, None, reason, None)
    settled = {
        member.case_id: (
            _stored_facts(member.volume),
            _stored_facts(member.mask),
            member.rejected,
            None if member.layout is None else _said_of(member),
        )
        for member in stored.members
    }
    return settled == discovered


def _said(case: Case, settings: DataSettings) -> tuple[object, ...]:
    return case.patient, case.visit or None, case.date or None, _labels(case, settings), case.pathology or None


def _said_of(member: Member) -> tuple[object, ...]:
    return member.patient, member.visit, member.date, member.tumour_labels, member.pathology


def _labels(case: Case, settings: DataSettings) -> tuple[int, ...] | None:
    return None if case.mask is None else settings.tumour_labels or case.tumour_labels


def _facts(root: str, ref: VolumeRef, sized: bool) -> FileFacts:
    return below(root, ref.path), ref.channel, facts_at(ref.path).st_size if sized else None


def _stored_facts(file: File | None) -> FileFacts | None:
    return None if file is None else (file.path, file.channel, file.size)


def _untaken(case_id: str, taken: set[str]) -> str:
    """`case_id`, with a number if it is taken: a rejected case must not stop the others."""
    name = case_id
    number = 2
    while name in taken:
        name = f"{case_id} ({number})"
        number += 1
    taken.add(name)
    return name


def _split_patients(facts: Sequence[tuple[Case, bool | None]], settings: DataSettings) -> dict[str, str]:
    """The split of every case. All visits of a patient have the same split; unlabelled cases have their own."""
    patients: dict[str, bool] = {}
    for case, tumour_free in facts:
        if tumour_free is not None:
            patients[case.patient] = patients.get(case.patient, False) or tumour_free
    share = settings.split
    dealt = split_cases(patients, ratios=(share.train, share.validation, share.test), seed=share.seed)
    return {case.case_id: UNLABELLED if fact is None else dealt[case.patient] for case, fact in facts}


def _has_tumour_free(case: Case, settings: DataSettings) -> bool | None:
    """Whether a labelled case has a slice without tumour in the range; None if it is unlabelled.

    A mask that cannot be read counts as False here; its case is rejected later.
    """
    if case.mask is None:
        return None
    try:
        with_tumour = _tumour_by_slice(case, settings)
    except InputError:  # the same command, run again, may find it readable
        raise
    except Exception:  # whatever one mask does, the other cases go on
        return False
    return not bool(with_tumour.all())


def _tumour_by_slice(case: Case, settings: DataSettings) -> BoolArray:
    """Whether there is tumour in each slice of the range. Only where the brain places the range, the volume is read."""
    if case.levels == "brain":
        slices = read_slices(case, settings)
        masks = slices.masks
    else:
        volume = read_header(case.case_id, case.volumes[settings.modality], settings.max_gib)
        wanted = range(settings.first_slice, settings.last_slice + 1)
        if wanted.stop > volume.picture_shape[0]:
            raise CaseError(case.case_id, "the volume does not reach the range")
        masks = read_mask(case, volume, wanted, settings.max_gib)
    assert masks is not None, f"{case.case_id} has no mask"
    by_slice: BoolArray = np.logical_or.reduce(masks, axis=(1, 2))
    return by_slice


def _member(root: str, case: Case, settings: DataSettings, split: str, sized: bool) -> Member:
    volume = case.volumes[settings.modality]
    return Member(
        case_id=case.case_id,
        split=split,
        phantom=_is_phantom(case, settings),
        volume=_file(root, volume, sized),
        mask=_file(root, case.mask, sized) if case.mask else None,
        patient=case.patient,
        visit=case.visit or None,
        layout=None if case.layout == EARLIER else case.layout,
        tumour_labels=None if case.mask is None else case.tumour_labels,
        levels="brain" if case.levels == "brain" else None,
        pathology=case.pathology or None,
        date=case.date or None,
    )


def _file(root: str, ref: VolumeRef, sized: bool) -> File:
    path, channel, size = _facts(root, ref, sized)
    return File(path=path, channel=channel, size=size)


def _is_phantom(case: Case, settings: DataSettings) -> bool:
    try:
        header = read_header(case.case_id, case.volumes[settings.modality], settings.max_gib)
    except CaseError:  # the case is rejected with its reason when it is read
        return False
    return PHANTOM_NOTE in header.description

"""From the files of one folder to drafts of cases, in each layout that is known.

One decision: names decide, and no volume is opened; what is inside a file is judged when it is read (`read.py`). The
one file that is read is the `dataset.json` of the Medical Segmentation Decathlon (MSD, http://medicaldecathlon.com),
which gives the order of channels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from medad_core.data.cases import DraftCase, Rejection, VolumeRef
from medad_core.data.names import MASK, is_nifti, parse, printable, stem
from medad_core.errors import UsageError

KNOWN_LAYOUTS = (
    "X/X_flair.nii.gz (BraTS 2020, 2021), X/X-t2f.nii.gz (BraTS 2023 and later), "
    "one level deeper (HGG/X/X_flair.nii.gz), all files in one folder (X_flair.nii.gz, X_seg.nii.gz), "
    "or MSD (imagesTr/X.nii.gz with labelsTr/X.nii.gz)"
)
MSD_LABELS = {"imagestr": "labelsTr", "imagests": "labelsTs"}  # folder of images, in lower case, to that of labels
_MSD_CHANNELS = {"flair": 0, "t1": 1, "t1ce": 2, "t2": 3}
_MSD_WORDS = {
    "flair": "flair",
    "t1w": "t1",
    "t1": "t1",
    "t1gd": "t1ce",
    "t1ce": "t1ce",
    "t1c": "t1ce",
    "t2w": "t2",
    "t2": "t2",
}
_LONGEST = 1 << 20  # characters of a dataset.json


def draft_folder(folder: Path, names: Sequence[str]) -> tuple[list[DraftCase], list[Rejection]]:
    """Group the NIfTI files `names` of one folder by case. Where a name gives no case, the folder's name does.

    A file whose name gives no modality is rejected, unless it lies beside a case that it is derived from.
    """
    drafts: dict[str, DraftCase] = {}
    unknown: list[str] = []
    own = folder_name(folder)
    place = str(folder)
    for name in names:
        parsed = parse(name)
        if parsed.kind is None:
            unknown.append(name)
            continue
        case_id = parsed.case_id or own
        draft = drafts.setdefault(case_id, DraftCase(case_id, place))
        draft.files[parsed.kind].append(VolumeRef(f"{place}/{name}"))
    _adopt_lone_mask(drafts, own)
    # Derived files beside a case (X_FLAIR_bias, X_brain) are no cases of their own.
    starts = tuple(case_id + mark for case_id in drafts for mark in "_-.")
    strangers = [name for name in unknown if own not in drafts and not name.startswith(starts)]
    return list(drafts.values()), [_without_modality(name) for name in strangers]


def _without_modality(name: str) -> Rejection:
    case_id = printable(stem(name))
    return Rejection(case_id, f"{printable(name)}: the name gives no modality; name it like {case_id}_flair.nii.gz")


def _adopt_lone_mask(drafts: dict[str, DraftCase], own: str) -> None:
    """BraTS 2020 case 355 calls its mask W39_1998.09.19_Segm: in a folder of one case, the only mask is that case's.

    Unless its name may be that of a case whose volume is still to come: neither the case bears the folder's name, nor
    the mask no name at all.
    """
    masks = [draft for draft in drafts.values() if set(draft.files) == {MASK}]
    others = [draft for draft in drafts.values() if draft not in masks]
    if len(masks) == len(others) == 1 and own in drafts and MASK not in others[0].files:
        others[0].files[MASK] = drafts.pop(masks[0].case_id).files[MASK]


def draft_msd(images: Path) -> list[DraftCase]:
    """Cases of an MSD folder of images: one 4-D file a case, the channel order in dataset.json, labels beside.

    Raises UsageError for a dataset.json that cannot be understood, OSError for a folder that cannot be read.
    """
    channels = _msd_channels(images.parent / "dataset.json")
    labels = images.parent / MSD_LABELS[images.name.lower()]
    drafts = []
    for name in sorted(entry.name for entry in os.scandir(images) if is_nifti(entry.name) and is_file(entry)):
        draft = DraftCase(stem(name), str(images))
        for modality, channel in channels.items():
            draft.files[modality].append(VolumeRef(str(images / name), channel))
        if os.path.lexists(labels / name):
            draft.files[MASK].append(VolumeRef(str(labels / name)))
        drafts.append(draft)
    return drafts


def _msd_channels(description: Path) -> dict[str, int]:
    """Channel of each modality that a dataset.json names; the decathlon's own order where there is none."""
    if not description.is_file():
        return dict(_MSD_CHANNELS)
    try:
        with description.open(encoding="utf-8") as stream:
            content = json.loads(stream.read(_LONGEST))
        named = content.get("modality") or content["channel_names"]
        return {_MSD_WORDS[word.lower()]: int(number) for number, word in named.items() if word.lower() in _MSD_WORDS}
    except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise UsageError(
            f'{description}: cannot be understood ({error!r}); expected "modality": {{"0": "FLAIR", "1": "T1w", …}}'
        ) from error


def folder_name(folder: Path) -> str:
    """The folder's own name, not that of a link to it."""
    # To resolve every folder would take most of the time of a large tree.
    return folder.resolve().name if folder.name in ("", "..") or folder.is_symlink() else folder.name


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a folder, or a link to one."""
    return is_true(entry.is_dir)


def is_file(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a file, or a link to nothing, which is a file that somebody meant to be there.

    Not a pipe or a socket: reading it would wait for ever.
    """
    return is_true(entry.is_file) or (entry.is_symlink() and not os.path.exists(entry.path))


def is_true(ask: Callable[[], bool]) -> bool:
    """The answer of a file system, False where it refuses to give one."""
    try:
        return ask()
    except OSError:  # a link to itself, or to where nobody may look
        return False

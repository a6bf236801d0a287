"""Finding the cases under a folder: who is there, which files are theirs, who cannot be used and why.

One decision: discovery looks at names only and opens no volume, so ten thousand cases list in seconds; what is inside a
file is judged when it is read (`read.py`).
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medad_core.data.names import MASK, MODALITIES, is_nifti, parse, stem
from medad_core.errors import UsageError

KNOWN_LAYOUTS = (
    "X/X_flair.nii.gz (BraTS 2020, 2021), X/X-t2f.nii.gz (BraTS 2023 and later), one level deeper (HGG/X/X_flair.nii.gz), "
    "all files in one folder (X_flair.nii.gz, X_seg.nii.gz), or MSD (imagesTr/X.nii.gz with labelsTr/X.nii.gz)"
)
_DEEPEST = 4
_BESIDE = (".json", ".csv", ".tsv", ".txt", ".md", ".pdf", ".log", ".xml", ".html", ".png", ".jpg", ".md5", ".sha256")  # what may lie beside volumes
_MSD_IMAGES = {"imagestr": "labelsTr", "imagests": "labelsTs"}
_MSD_CHANNELS = {"flair": 0, "t1": 1, "t1ce": 2, "t2": 3}
_MSD_WORDS = {"flair": "flair", "t1w": "t1", "t1": "t1", "t1gd": "t1ce", "t1ce": "t1ce", "t1c": "t1ce", "t2w": "t2", "t2": "t2"}


@dataclass(frozen=True)
class VolumeRef:
    """A 3-D volume in a file; `channel` picks one of a 4-D file (None: the file holds one volume)."""

    path: str
    channel: int | None = None


@dataclass(frozen=True)
class Case:
    """One examination of one patient. `volumes` maps "flair", "t1", "t1ce", "t2" to files; `mask` is None where unlabelled."""

    case_id: str
    volumes: dict[str, VolumeRef]
    mask: VolumeRef | None


@dataclass(frozen=True)
class Rejection:
    """A case that cannot be used, with a reason a user can act on."""

    case_id: str
    reason: str


@dataclass(frozen=True)
class Discovery:
    """All cases and rejections under a folder, each sorted by case_id."""

    cases: tuple[Case, ...]
    rejected: tuple[Rejection, ...]


@dataclass
class _Draft:
    case_id: str
    folder: str
    files: dict[str, list[VolumeRef]] = field(default_factory=lambda: defaultdict(list))


def discover(root: str | Path, modality: str = "flair", *, may_be_empty: bool = False) -> Discovery:
    """Find every case under `root` that has a volume of `modality` ("flair", "t1", "t1ce" or "t2").

    Raises UsageError where `root` is missing, is a file, or holds no case at all, and where a dataset.json is odd. One that `may_be_empty`
    is a folder into which cases come: there a dataset.json that is odd, or half-copied, is a rejection of its folder.
    """
    root = Path(root)
    if modality not in MODALITIES:
        raise UsageError(f"data.modality={modality}: not a known modality; choose one of {', '.join(MODALITIES)}")
    if not root.exists():
        raise UsageError(f"{root}: no such folder; give the folder that holds the cases")
    if not root.is_dir():
        raise UsageError(f"{root}: a file, not a folder; give the folder that holds the cases")
    drafts: list[_Draft] = []
    rejected: list[Rejection] = []
    for entry in _walk(root, rejected, strict=not may_be_empty):
        drafts.extend(entry)
    cases, refused = _settle(drafts, modality)
    rejected.extend(refused)
    if not cases and not rejected and not may_be_empty:
        raise UsageError(f"{root}: no case found; known layouts are {KNOWN_LAYOUTS}")
    return Discovery(tuple(sorted(cases, key=lambda c: c.case_id)), tuple(sorted(rejected, key=lambda r: (r.case_id, r.reason))))


def _walk(folder: Path, rejected: list[Rejection], strict: bool, depth: int = 0) -> Iterator[list[_Draft]]:
    """Drafts of one folder after another, in sorted order; folders that cannot hold a case go to `rejected`."""
    try:
        entries = sorted((e for e in os.scandir(folder) if not e.name.startswith((".", "__MACOSX"))), key=lambda e: e.name)
        if folder.name.lower() in _MSD_IMAGES:
            yield _msd_drafts(folder.parent, folder)
            return
    except (OSError, UsageError) as error:
        if strict and isinstance(error, UsageError):
            raise
        words = f"folder cannot be read ({error.strerror}); check its permissions" if isinstance(error, OSError) else str(error)
        rejected.append(Rejection(_printable(folder.name), words))
        return
    folders = [e for e in entries if e.is_dir()]
    images = {e.name.lower() for e in folders} & _MSD_IMAGES.keys()
    labels = {_MSD_IMAGES[name].lower() for name in images}
    if not entries and depth:
        rejected.append(Rejection(_printable(folder.name), "empty folder; add its volumes or remove it"))
    files = [e.name for e in entries if not e.is_dir() and not e.name.lower().endswith(_BESIDE)]
    volumes = [name for name in files if is_nifti(name)]
    drafts = _folder_drafts(folder, volumes, rejected)
    if files and not (strict or folders or volumes):
        rejected.append(Rejection(_printable(folder.name), f"{len(files)} files and no NIfTI volume ({_printable(files[0])}, …); convert them to .nii.gz"))
    yield drafts
    if depth < _DEEPEST:
        for child in folders:
            if child.name.lower() not in labels:
                yield from _walk(Path(child.path), rejected, strict, depth + 1)
    else:
        rejected.extend(Rejection(_printable(child.name), f"lies deeper than {_DEEPEST} folders; move it up") for child in folders)


def _folder_drafts(folder: Path, names: list[str], rejected: list[Rejection]) -> list[_Draft]:
    """Group one folder's files by the case that their names give; the folder names the case where they do not."""
    drafts: dict[str, _Draft] = {}
    unknown: list[str] = []
    for name in names:
        parsed = parse(name)
        if parsed.kind is None:
            unknown.append(name)
            continue
        case_id = parsed.case_id or folder.resolve().name
        draft = drafts.setdefault(case_id, _Draft(case_id, str(folder)))
        draft.files[parsed.kind].append(VolumeRef(str(folder / name)))
    _adopt_lone_mask(drafts, folder.resolve().name)
    for name in unknown:
        # Derived files beside a case (X_FLAIR_bias, X_brain) are no cases of their own.
        if not any(re.match(rf"{re.escape(case_id)}($|[^0-9A-Za-z])", stem(name)) for case_id in drafts) and folder.resolve().name not in drafts:
            rejected.append(Rejection(_printable(stem(name)), f"{_printable(name)}: the name gives no modality; name it like {_printable(stem(name))}_flair.nii.gz"))
    return list(drafts.values())


def _adopt_lone_mask(drafts: dict[str, _Draft], folder: str) -> None:
    """BraTS 2020 case 355 calls its mask W39_1998.09.19_Segm: in a folder of one case, the only mask is that case's. In a folder that bears no case's name
    it may be that of a case whose volume has not come yet."""
    strays = [d for d in drafts.values() if set(d.files) == {MASK}]
    others = [d for d in drafts.values() if d not in strays]
    if len(strays) == 1 and len(others) == 1 and MASK not in others[0].files and others[0].case_id == folder:
        others[0].files[MASK] = strays[0].files[MASK]
        del drafts[strays[0].case_id]


def _msd_drafts(root: Path, images: Path) -> list[_Draft]:
    """Medical Segmentation Decathlon: one 4-D file a case, the channel order in dataset.json, labels beside."""
    channels = _msd_channels(root / "dataset.json")
    labels = root / _MSD_IMAGES[images.name.lower()]
    drafts = []
    for name in sorted(e.name for e in os.scandir(images) if e.is_file() and is_nifti(e.name)):
        draft = _Draft(stem(name), str(images))
        for modality, channel in channels.items():
            draft.files[modality].append(VolumeRef(str(images / name), channel))
        if (labels / name).is_file():
            draft.files[MASK].append(VolumeRef(str(labels / name)))
        drafts.append(draft)
    return drafts


def _msd_channels(description: Path) -> dict[str, int]:
    if not description.is_file():
        return dict(_MSD_CHANNELS)
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
        named = content.get("modality") or content["channel_names"]
        return {_MSD_WORDS[word.lower()]: int(number) for number, word in named.items() if word.lower() in _MSD_WORDS}
    except (ValueError, KeyError, AttributeError) as error:
        raise UsageError(f'{description}: cannot be understood ({error!r}); expected "modality": {{"0": "FLAIR", "1": "T1w", …}}') from error


def _settle(drafts: list[_Draft], modality: str) -> tuple[list[Case], list[Rejection]]:
    """Turn drafts into cases; ids that two folders claim, and cases without the modality, are rejected."""
    by_id: dict[str, list[_Draft]] = defaultdict(list)
    for draft in drafts:
        by_id[draft.case_id].append(draft)
    cases, rejected = [], []
    for case_id, claims in by_id.items():
        reason = _why_not(claims, modality)
        if reason:
            rejected.append(Rejection(_printable(case_id), reason))
        else:
            files = claims[0].files
            volumes = {m: files[m][0] for m in MODALITIES if m in files}
            cases.append(Case(case_id, volumes, files[MASK][0] if MASK in files else None))
    return cases, rejected


def _printable(name: str) -> str:
    """File names on disk are bytes; those that are no UTF-8 could be written to no table."""
    return name.encode("utf-8", "replace").decode()


def _why_not(claims: list[_Draft], modality: str) -> str | None:
    if claims[0].case_id != _printable(claims[0].case_id):
        return "its name is not valid UTF-8; rename its files"
    if len(claims) > 1:
        places = ", ".join(sorted(Path(c.folder).name for c in claims))
        return f"case id found {len(claims)} times, in {places}; rename or remove all but one"
    files = claims[0].files
    if modality not in files:
        there = ", ".join(sorted(files))
        return f"no {modality} volume (found: {there}); add it or choose another with data.modality="
    for kind in (modality, MASK):
        if len(files.get(kind, ())) > 1:
            names = ", ".join(sorted(Path(r.path).name for r in files[kind]))
            return f"{len(files[kind])} files for {kind}: {names}; keep one"
    return None

"""Finding the cases under a folder: who is there, which files are theirs, who cannot be used and why.

One decision: discovery looks at names only and opens no volume, so ten thousand cases list in seconds; what is inside a
file is judged when it is read (`read.py`).
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from medad_core.data.names import MASK, MODALITIES, is_nifti, parse, stem
from medad_core.errors import UsageError

KNOWN_LAYOUTS = (
    "X/X_flair.nii.gz (BraTS 2020, 2021), X/X-t2f.nii.gz (BraTS 2023 and later), one level deeper (HGG/X/X_flair.nii.gz), "
    "all files in one folder (X_flair.nii.gz, X_seg.nii.gz), or MSD (imagesTr/X.nii.gz with labelsTr/X.nii.gz)"
)
_DEEPEST = 4
_LONGEST = 1 << 20  # characters of a dataset.json
# What lies beside cases and is never a study.
_ASIDE = re.compile(
    r"(readme|license|changes|thumbs\.db)\Z|.*\.(json|[ct]sv|txt|md|rst|pdf|docx?|xlsx?|xml|html?|ya?ml|ini|log|bvals?|bvecs?|py|sh)\Z",
    re.IGNORECASE | re.DOTALL,
)
_MSD_IMAGES = {"imagestr": "labelsTr", "imagests": "labelsTs"}
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

    Raises UsageError where `root` is missing, is a file, or holds no case at all, and for a dataset.json that cannot be understood. An inbox `may_be_empty`, and what is
    odd in one folder of it is a rejection of that folder only; so are files that may be a study and are no case.
    """
    root = Path(root)
    if modality not in MODALITIES:
        raise UsageError(f"data.modality={modality}: not a known modality; choose one of {', '.join(MODALITIES)}")
    if not root.exists():
        raise UsageError(f"{root}: no such folder; give the folder that holds the cases")
    if not root.is_dir():
        raise UsageError(f"{root}: a file, not a folder; give the folder that holds the cases")
    search = _Search(in_inbox=may_be_empty)
    search.walk(root)
    cases, refused = _settle(search.drafts, modality)
    rejected = [*search.rejected, *refused]
    if not cases and not rejected and not may_be_empty:
        raise UsageError(f"{root}: no case found; known layouts are {KNOWN_LAYOUTS}")
    return Discovery(
        tuple(sorted(cases, key=lambda c: c.case_id)), tuple(sorted(rejected, key=lambda r: (r.case_id, r.reason)))
    )


@dataclass
class _Search:
    """A walk through a tree of folders, and what it came upon."""

    in_inbox: bool
    drafts: list[_Draft] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)

    def walk(self, folder: Path, depth: int = 0) -> list[str]:
        """Look into `folder` and below. Returns its stray files where the whole tree holds no case: they are named once, at the highest folder that holds nothing else."""
        before = self._found
        try:
            if folder.name.lower() in _MSD_IMAGES:
                self.drafts += _msd_drafts(folder.parent, folder)
                return []
            entries = sorted(
                (e for e in os.scandir(folder) if not e.name.startswith((".", "__MACOSX", "@eaDir", "lost+found"))),
                key=lambda e: e.name,
            )
        except OSError as error:
            self._refuse(folder, f"folder cannot be read ({error.strerror}); check its permissions")
            return []
        except UsageError as error:
            if not self.in_inbox:
                raise
            if all(
                refused.reason != str(error) for refused in self.rejected
            ):  # imagesTr and imagesTs have one dataset.json
                self._refuse(folder.parent, str(error))
            return []
        if not entries and depth:
            self._refuse(folder, "empty folder; add its volumes or remove it")
        folders = _folders(entries)
        strays = self._take_files(folder, [e for e in entries if _is_file(e)])
        below = {e.path: self.walk(Path(e.path), depth + 1) for e in folders} if depth < _DEEPEST else {}
        strays += [f"{e.name}/" for e in folders if depth == _DEEPEST]
        if depth and self._found == before:
            return [*strays, *(name for names in below.values() for name in names)]
        for path, names in {**below, str(folder): strays}.items():
            self._name_strays(Path(path), names)
        return []

    @property
    def _found(self) -> int:
        return len(self.drafts) + len(self.rejected)

    def _take_files(self, folder: Path, entries: list[os.DirEntry]) -> list[str]:
        """Take the cases of one folder's files. Returns the names of those that are no volume, and not just something beside a case."""
        drafts = _folder_drafts(folder, [e.name for e in entries if is_nifti(e.name)], self.rejected)
        self.drafts += drafts
        others = [e for e in entries if not is_nifti(e.name) and not _ASIDE.match(e.name)]
        return [e.name for e in others if not drafts or not _tell(e.is_file)]

    def _name_strays(self, folder: Path, names: list[str]) -> None:
        if names and self.in_inbox:
            some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            self._refuse(
                folder,
                f"no case in {_printable(some)} ({len(names)} in all); give NIfTI files named like X_flair.nii.gz (dcm2niix makes them from DICOM)",
            )

    def _refuse(self, folder: Path, reason: str) -> None:
        self.rejected.append(Rejection(_printable(_name(folder)), reason))


def _folders(entries: list[os.DirEntry]) -> list[os.DirEntry]:
    """Folders to look into: where there are MSD's images, the labels beside them belong to these."""
    folders = [e for e in entries if _tell(e.is_dir)]
    taken = {_MSD_IMAGES[e.name.lower()].lower() for e in folders if e.name.lower() in _MSD_IMAGES}
    return [e for e in folders if e.name.lower() not in taken]


def _is_file(entry: os.DirEntry) -> bool:
    """Also for a link to nothing, which is a file that somebody meant to be here; not for a pipe or a socket, which would be waited for."""
    return _tell(entry.is_file) or (entry.is_symlink() and not os.path.exists(entry.path))


def _tell(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link to itself, or to where nobody may look
        return False


def _name(folder: Path) -> str:
    """The folder's own name, not that of a link to it. To resolve every folder would take most of the time of a large tree."""
    return folder.resolve().name if folder.name in ("", "..") or folder.is_symlink() else folder.name


def _folder_drafts(folder: Path, names: list[str], rejected: list[Rejection]) -> list[_Draft]:
    """Group one folder's files by the case that their names give; the folder names the case where they do not."""
    drafts: dict[str, _Draft] = {}
    unknown: list[str] = []
    own = _name(folder)
    for name in names:
        parsed = parse(name)
        if parsed.kind is None:
            unknown.append(name)
            continue
        case_id = parsed.case_id or own
        draft = drafts.setdefault(case_id, _Draft(case_id, str(folder)))
        draft.files[parsed.kind].append(VolumeRef(str(folder / name)))
    _adopt_lone_mask(drafts, own)
    for name in unknown:
        # Derived files beside a case (X_FLAIR_bias, X_brain) are no cases of their own.
        if own not in drafts and not any(
            name.startswith(tuple(case_id + mark for mark in "_-.")) for case_id in drafts
        ):
            rejected.append(
                Rejection(
                    _printable(stem(name)),
                    f"{_printable(name)}: the name gives no modality; name it like {_printable(stem(name))}_flair.nii.gz",
                )
            )
    return list(drafts.values())


def _adopt_lone_mask(drafts: dict[str, _Draft], own: str) -> None:
    """BraTS 2020 case 355 calls its mask W39_1998.09.19_Segm: in a folder of one case, the only mask is that case's.

    Unless its name may be that of a case whose volume is still to come: neither the case bears the folder's name, nor the mask no name at all.
    """
    strays = [d for d in drafts.values() if set(d.files) == {MASK}]
    others = [d for d in drafts.values() if d not in strays]
    if len(strays) == len(others) == 1 and own in drafts and MASK not in others[0].files:
        others[0].files[MASK] = drafts.pop(strays[0].case_id).files[MASK]


def _msd_drafts(root: Path, images: Path) -> list[_Draft]:
    """Medical Segmentation Decathlon: one 4-D file a case, the channel order in dataset.json, labels beside."""
    channels = _msd_channels(root / "dataset.json")
    labels = root / _MSD_IMAGES[images.name.lower()]
    drafts = []
    for name in sorted(e.name for e in os.scandir(images) if is_nifti(e.name) and _is_file(e)):
        draft = _Draft(stem(name), str(images))
        for modality, channel in channels.items():
            draft.files[modality].append(VolumeRef(str(images / name), channel))
        if os.path.lexists(labels / name):
            draft.files[MASK].append(VolumeRef(str(labels / name)))
        drafts.append(draft)
    return drafts


def _msd_channels(description: Path) -> dict[str, int]:
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
    if any(text != _printable(text) for text in (claims[0].case_id, claims[0].folder)):
        return "its name, or its folder's, is not valid UTF-8; rename it"
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
        for ref in files.get(kind, ()):
            if os.path.islink(ref.path) and not os.path.exists(ref.path):
                return f"{Path(ref.path).name}: a link to a file that is not there; bring the file back"
    return None

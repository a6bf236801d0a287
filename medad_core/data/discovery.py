"""Finding the cases under a folder: which there are, which files are theirs, which cannot be used and why.

One decision: the tree is walked once and no volume is opened, so ten thousand cases list in seconds.
"""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from medad_core.data.cases import Case, Discovery, DraftCase, Rejection
from medad_core.data.layouts import (
    KNOWN_LAYOUTS,
    MSD_LABELS,
    draft_folder,
    draft_msd,
    folder_name,
    is_file,
    is_folder,
    is_true,
)
from medad_core.data.names import MASK, MODALITIES, is_nifti, printable
from medad_core.data.own_folders import is_medad_folder
from medad_core.errors import UsageError
from medad_core.store.collector import collector_paused

log = logging.getLogger(__name__)
_DEEPEST = 4
_NAMED = 3  # stray files that a reason names
_HIDDEN = (".", "__MACOSX", "@eaDir", "lost+found")
# What lies beside cases and is never a study.
_ASIDE = re.compile(
    r"(readme|license|changes|thumbs\.db)\Z|.*\."
    r"(json|[ct]sv|txt|md|rst|pdf|docx?|xlsx?|xml|html?|ya?ml|ini|log|bvals?|bvecs?|py|sh)\Z",
    re.IGNORECASE | re.DOTALL,
)


@collector_paused()
def discover(root: str | Path, modality: str = "flair", *, may_be_empty: bool = False) -> Discovery:
    """Find every case under `root` that has a volume of `modality` ("flair", "t1", "t1ce" or "t2").

    An inbox `may_be_empty`. What is odd in one folder of it is a rejection of that folder only, and so are files that
    may be a study and are no case.

    Raises UsageError where `root` is missing, is a file, or holds no case at all, and for a dataset.json that cannot be
    understood.
    """
    root = Path(root)
    check_folder(root, modality)
    search = _Search(in_inbox=may_be_empty)
    search.walk(root)
    cases, refused = _settle(search.drafts, modality)
    rejected = [*search.rejected, *refused]
    if not cases and not rejected and not may_be_empty:
        raise UsageError(f"{root}: no case found; known layouts are {KNOWN_LAYOUTS}")
    return Discovery(
        cases=tuple(sorted(cases, key=lambda case: case.case_id)),
        rejected=tuple(sorted(rejected, key=lambda rejection: (rejection.case_id, rejection.reason))),
    )


def check_folder(root: str | Path, modality: str) -> None:
    """Raise UsageError where `root` is no folder, or `modality` is not known. Nothing is walked."""
    root = Path(root)
    if modality not in MODALITIES:
        raise UsageError(f"data.modality={modality}: not a known modality; choose one of {', '.join(MODALITIES)}")
    if not root.exists():
        raise UsageError(f"{root}: no such folder; give the folder that holds the cases")
    if not root.is_dir():
        raise UsageError(f"{root}: a file, not a folder; give the folder that holds the cases")


@dataclass
class _Search:
    """A walk through a tree of folders, and what it came upon."""

    in_inbox: bool
    drafts: list[DraftCase] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)

    def walk(self, folder: Path, depth: int = 0) -> list[str]:
        """Search `folder` and below. Returns the stray files of a tree that holds no case.

        So they are named once, at the highest folder that holds nothing else.
        """
        try:
            if folder.name.lower() in MSD_LABELS:
                self._take_msd(folder)
                return []
            entries = _visible_entries(folder)
        except OSError as error:
            self._refuse(folder, f"folder cannot be read ({error.strerror}); check its permissions")
            return []
        if depth and is_medad_folder(folder, {entry.name for entry in entries}):
            log.warning("%s: a folder of medad's results; it is passed over", printable(str(folder)))
            return []
        if not entries and depth:
            self._refuse(folder, "empty folder; add its volumes or remove it")
            return []
        return self._take_folder(folder, entries, depth)

    def _take_folder(self, folder: Path, entries: list[os.DirEntry[str]], depth: int) -> list[str]:
        before = self._count
        folders = _folders_to_search(entries)
        strays = self._take_files(folder, [entry for entry in entries if is_file(entry)])
        strays_below: dict[Path, list[str]] = {}
        if depth < _DEEPEST:
            paths = [Path(entry.path) for entry in folders]
            strays_below = {path: self.walk(path, depth + 1) for path in paths}
        else:
            strays += [f"{entry.name}/" for entry in folders]
        if depth and self._count == before:
            return [*strays, *(name for names in strays_below.values() for name in names)]
        for path, names in {**strays_below, folder: strays}.items():
            self._name_strays(path, names)
        return []

    @property
    def _count(self) -> int:
        return len(self.drafts) + len(self.rejected)

    def _take_msd(self, images: Path) -> None:
        try:
            self.drafts += draft_msd(images)
        except UsageError as error:
            if not self.in_inbox:
                raise
            # imagesTr and imagesTs have one dataset.json, which is named once.
            if all(rejection.reason != str(error) for rejection in self.rejected):
                self._refuse(images.parent, str(error))

    def _take_files(self, folder: Path, entries: list[os.DirEntry[str]]) -> list[str]:
        """Take the cases of one folder's files.

        Returns the names of files that are no volume, and not just something beside a case.
        """
        drafts, rejected = draft_folder(folder, [entry.name for entry in entries if is_nifti(entry.name)])
        self.drafts += drafts
        self.rejected += rejected
        others = [entry for entry in entries if not is_nifti(entry.name) and not _ASIDE.match(entry.name)]
        return [entry.name for entry in others if not drafts or not is_true(entry.is_file)]

    def _name_strays(self, folder: Path, names: list[str]) -> None:
        if names and self.in_inbox:
            some = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
            self._refuse(
                folder,
                f"no case in {printable(some)} ({len(names)} in all); "
                "give NIfTI files named like X_flair.nii.gz (dcm2niix makes them from DICOM)",
            )

    def _refuse(self, folder: Path, reason: str) -> None:
        self.rejected.append(Rejection(printable(folder_name(folder)), reason))


def _visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(_HIDDEN)]
    return sorted(entries, key=lambda entry: entry.name)


def _folders_to_search(entries: list[os.DirEntry[str]]) -> list[os.DirEntry[str]]:
    """The folders among `entries`, without the labels that belong to MSD's images beside them."""
    folders = [entry for entry in entries if is_folder(entry)]
    names = {entry.name.lower() for entry in folders}
    labels = {labels.lower() for images, labels in MSD_LABELS.items() if images in names}
    return [entry for entry in folders if entry.name.lower() not in labels]


def _settle(drafts: list[DraftCase], modality: str) -> tuple[list[Case], list[Rejection]]:
    """Turn drafts into cases; ids that two folders claim, and cases without the modality, are rejected."""
    by_id: dict[str, list[DraftCase]] = defaultdict(list)
    for draft in drafts:
        by_id[draft.case_id].append(draft)
    cases = []
    rejected = []
    for case_id, claims in by_id.items():
        reason = _why_not(claims, modality)
        if reason is None:
            files = claims[0].files
            volumes = {name: files[name][0] for name in MODALITIES if name in files}
            cases.append(Case(case_id, volumes, files[MASK][0] if MASK in files else None))
        else:
            rejected.append(Rejection(printable(case_id), reason))
    return cases, rejected


def _why_not(claims: list[DraftCase], modality: str) -> str | None:
    """Why the drafts of one case id are no case, None where they are."""
    first = claims[0]
    if any(text != printable(text) for text in (first.case_id, first.folder)):
        return "its name, or its folder's, is not valid UTF-8; rename it"
    if len(claims) > 1:
        places = ", ".join(sorted(Path(draft.folder).name for draft in claims))
        return f"case id found {len(claims)} times, in {places}; rename or remove all but one"
    if modality not in first.files:
        kinds = ", ".join(sorted(first.files))
        return f"no {modality} volume (found: {kinds}); add it or choose another with data.modality="
    for kind in (modality, MASK):
        refs = first.files.get(kind, [])
        if len(refs) > 1:
            names = ", ".join(sorted(Path(ref.path).name for ref in refs))
            return f"{len(refs)} files for {kind}: {names}; keep one"
        for ref in refs:
            if os.path.islink(ref.path) and not os.path.exists(ref.path):
                return f"{Path(ref.path).name}: a link to a file that is not there; bring the file back"
    return None

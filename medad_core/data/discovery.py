"""Finding the cases under a folder: which there are, which files are theirs, which cannot be used and why.

One decision: the tree is walked once and no volume is opened, so ten thousand cases list in seconds. The layouts say
what a file is (`layouts/`); what they do not explain is named and never used. A folder is walked under one name,
however many links lead to it: under two it would be two patients.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medad_core.data.cases import Discovery, Rejection
from medad_core.data.claims import Claims
from medad_core.data.identity import Identity, identity
from medad_core.data.judgement import judge
from medad_core.data.layouts import load_layouts
from medad_core.data.names import MODALITIES, is_nifti, is_other_format, printable
from medad_core.data.own_folders import is_medad_folder
from medad_core.data.tree import Entry, Tree, tree_of
from medad_core.errors import StoreError, UsageError
from medad_core.store.collector import collector_paused
from medad_core.store.files import absolute, explained, name_of, parent_of
from medad_core.store.objects import hasty, is_object, list_folder

_DEEPEST = 8
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
    check_folder(root, modality)
    place = absolute(root)
    folders = _with_labels(place)
    tree = tree_of(place)
    search = _Search(may_be_empty, Claims(place, tree), tree, [_real(folder) for folder in folders])
    for folder in folders:
        search.walk(folder)
    claims = search.claims
    drafts, strangers = claims.settle()
    rejected = [*search.rejected, *strangers, *_nameless_channels(claims)]
    cases, refused = judge(drafts, modality, claims)
    rejected += refused
    if not cases and claims.problems and not may_be_empty:
        raise UsageError(printable(next(iter(claims.problems.values()))))
    if not cases and not rejected and not may_be_empty:
        names = ", ".join(layout.layout for layout in load_layouts())
        raise UsageError(
            f"{root}: no case found; known layouts are {names}; see what every file is taken for with `medad inspect "
            "DATA --out cases.csv`, and give the corrected table instead of the folder"
        )
    return Discovery(
        cases=tuple(sorted(cases, key=lambda case: case.case_id)),
        rejected=tuple(sorted(rejected, key=lambda rejection: (rejection.case_id, rejection.reason))),
        passed_over=tuple(sorted(claims.passed_over, key=lambda passed: passed.path)),
    )


def _with_labels(root: str) -> list[str]:
    """The folder to walk; where it is the Decathlon's `imagesTr` itself, also `labelsTr` beside it."""
    labels = re.sub(r"\Aimages", "labels", name_of(root), flags=re.IGNORECASE).lower()
    if labels == name_of(root).lower():
        return [root]
    if is_object(root):
        raise UsageError(f"{root}: give the folder above it, so that the masks in {labels} are found too")
    return [root, *(entry.path for entry in os.scandir(parent_of(root)) if entry.name.lower() == labels)]


def _real(folder: str) -> str:
    return folder if is_object(folder) else os.path.realpath(folder)


def check_folder(root: str | Path, modality: str) -> None:
    """Raise UsageError where `root` is no folder, or `modality` is not known. Nothing is walked."""
    if modality not in MODALITIES:
        raise UsageError(f"data.modality={modality}: not a known modality; choose one of {', '.join(MODALITIES)}")
    if is_object(str(root)):
        _check_place(absolute(root))
        return
    root = Path(root)
    if not root.exists():
        raise UsageError(f"{root}: no such folder or table; give the folder that holds the cases, or a table (.csv)")
    if not root.is_dir():
        raise UsageError(f"{root}: a file, not a folder; give the folder that holds the cases")


def _check_place(root: str) -> None:
    """Raise UsageError where nothing lies below a place in a bucket, or the store does not answer within seconds."""
    try:
        with hasty(), explained("read", root):
            folders, files = list_folder(root)
    except StoreError as error:
        raise UsageError(str(error)) from error
    if not folders and not files:
        raise UsageError(f"{root}: no such folder or table; give the place that holds the cases, or a table (.csv)")


@dataclass
class _Search:
    """A walk through a tree of folders, and what was found."""

    in_inbox: bool
    claims: Claims
    tree: Tree
    roots: list[str]  # without links
    walked: dict[Identity, str] = field(default_factory=dict)
    rejected: list[Rejection] = field(default_factory=list)
    count: int = 0  # files and folders that were taken or refused

    def walk(self, folder: str, depth: int = 0) -> list[str]:
        """Search `folder` and below. Returns the stray files of a tree that holds no case.

        So they are named once, at the highest folder that holds nothing else.
        """
        try:
            first = self.walked.setdefault(identity(self.tree.facts(folder)), folder)
            if first != folder:
                self.claims.pass_over(folder, f"the same folder as {self._shown(first)}, which is used")
                return []
            entries = _visible(self.tree.entries(folder))
        except OSError as error:
            self._refuse(folder, f"folder cannot be read ({error.strerror}); check its permissions")
            return []
        if depth and is_medad_folder(folder, {entry.name for entry in entries}):
            self.claims.pass_over(folder, "a folder of medad's results")
            return []
        if not entries and depth:
            self._refuse(folder, "empty folder; add its volumes or remove it")
            return []
        return self._take_folder(folder, entries, depth)

    def _take_folder(self, folder: str, entries: Sequence[Entry], depth: int) -> list[str]:
        before = self.count
        folders = [entry for entry in entries if is_folder(entry)]
        strays = self._take_files(folder, [entry for entry in entries if not is_folder(entry)])
        folders = [entry for entry in folders if not self._is_known(entry)]
        strays_below: dict[str, list[str]] = {}
        if depth < _DEEPEST:
            strays_below = {entry.path: self.walk(entry.path, depth + 1) for entry in folders}
        else:
            strays += [f"{entry.name}/" for entry in folders]
        if depth and self.count == before:
            return [*strays, *(name for names in strays_below.values() for name in names)]
        for path, names in {**strays_below, folder: strays}.items():
            self._name_strays(path, names)
        return []

    def _is_known(self, entry: Entry) -> bool:
        """Whether a folder is a link to one that it lies in, or that is walked under its own name; then it is named."""
        if not entry.is_symlink():
            return False
        target = os.path.realpath(entry.path)
        if f"{os.path.realpath(os.path.dirname(entry.path))}/".startswith(f"{target}/"):
            self.claims.pass_over(entry.path, "a link to a folder that it lies in")
            return True
        for root in self.roots:
            below = target.removeprefix(f"{root}/")
            if below != target and not any(name.startswith(_HIDDEN) for name in below.split("/")):
                self.claims.pass_over(entry.path, f"a link to {below}, which is used under that name")
                return True
        return False

    def _shown(self, path: str) -> str:
        return path.removeprefix(f"{self.claims.root}/")

    def _take_files(self, folder: str, entries: Sequence[Entry]) -> list[str]:
        """Take the volumes of one folder.

        Returns the names of files that are no volume, and not just something beside a case.
        """
        has_case = False
        others = []
        for entry in entries:
            if is_nifti(entry.name) or is_other_format(entry.name):
                self.count += 1
                has_case |= self.claims.take(folder, entry.name)
            elif is_file(entry) and not _ASIDE.match(entry.name):
                others.append(entry)
        return [entry.name for entry in others if not has_case or not is_true(entry.is_file)]

    def _name_strays(self, folder: str, names: list[str]) -> None:
        if not names:
            return
        some = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
        reason = f"no case in {printable(some)} ({len(names)} in all)"
        if self.in_inbox:
            self._refuse(
                folder, f"{reason}; give NIfTI files named like X_flair.nii.gz (dcm2niix makes them from DICOM)"
            )
        else:
            self.claims.pass_over(folder, reason)

    def _refuse(self, folder: str, reason: str) -> None:
        self.count += 1
        self.rejected.append(Rejection(name_of(folder), reason))


def _visible(entries: Sequence[Entry]) -> list[Entry]:
    return sorted((entry for entry in entries if not entry.name.startswith(_HIDDEN)), key=lambda entry: entry.name)


def is_folder(entry: Entry) -> bool:
    """Whether the entry is a folder, or a link to one."""
    return is_true(entry.is_dir)


def is_file(entry: Entry) -> bool:
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


def _nameless_channels(claims: Claims) -> list[Rejection]:
    """The datasets whose channels have no names."""
    return [Rejection(name_of(base), reason) for base, reason in claims.problems.items()]

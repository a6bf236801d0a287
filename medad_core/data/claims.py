"""From files to drafts of cases: every file is what the layouts say, or is passed over and named.

One decision: the drafts are judged only when the whole tree is known, because what a file means may depend on those
beside it.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from medad_core.data.cases import PassedOver, Rejection, VolumeRef
from medad_core.data.channels import DECATHLON, NO_CHANNELS, Channels, missing, read_channels
from medad_core.data.layouts import Layout, Match, the_matcher
from medad_core.data.layouts.rules import CHANNEL, CHANNELS, PASSED_OVER
from medad_core.data.names import MASK, MODALITIES, canonical, is_other_format, printable, stem
from medad_core.data.tree import Tree
from medad_core.errors import UsageError
from medad_core.store.files import name_of, parent_of

UNEXPLAINED = "no layout says what it is"
_MARKS = re.compile(r"[-_.]")
# What SPM and FSL put before the name of a volume that they moved, smoothed or segmented.
_PREFIXES = ("r", "w", "m", "s", "u", "rw", "wr", "sw", "wm", "swr", "c1", "c2", "c3")


@dataclass(frozen=True, slots=True)
class Claim:
    """A file that a layout gives to a case, preferred to others of its role where the layout says so."""

    ref: VolumeRef
    is_preferred: bool


@dataclass(slots=True)
class Draft:
    """The files that one case id claims within a dataset, by role; not yet judged."""

    case_id: str
    base: str
    layout: Layout
    patient: str
    visit: str
    is_loose: bool  # its files lie beside those of other cases
    tumour_labels: list[int] | None = None
    files: dict[str, list[Claim]] = field(default_factory=lambda: defaultdict(list))

    @property
    def folders(self) -> list[str]:
        """The names of the folders that its files lie in."""
        return sorted({name_of(parent_of(claim.ref.path)) for claims in self.files.values() for claim in claims})


class Claims:
    """All files of a tree, as the layouts explain them."""

    def __init__(self, root: str, tree: Tree) -> None:
        self.root = root
        self.tree = tree
        self.drafts: dict[tuple[str, str], Draft] = {}  # by the dataset's folder and case id
        self.problems: dict[str, str] = {}  # by folder of a dataset: why its channels have no names
        self.passed_over: list[PassedOver] = []
        self._owners: dict[str, str] = {}  # by folder: the case that it belongs to
        self._channels: dict[str, Channels | None] = {}
        self._decathlons: set[str] = set()  # datasets whose channels have the Decathlon's order
        self._loose: list[tuple[str, Match]] = []  # files in folders that may turn out to belong to a case
        self._nameless: list[tuple[str, str]] = []  # files that make no case, with why

    def take(self, folder: str, name: str) -> bool:
        """Take a volume of any format; returns whether it may be part of a case."""
        path = f"{folder}/{name}"
        match = the_matcher().match(f"{folder}/{stem(name)}")
        if match is None:
            self._nameless.append((path, UNEXPLAINED))
            return False
        if match.role == PASSED_OVER:
            self._nameless.append((path, match.rule.reason))
            return False
        if match.rule.owns:
            self._owners.setdefault(folder, match.case_id)
        if "/" in match.rule.path:
            self._claim(path, match)
        else:
            self._loose.append((path, match))
        return True

    def settle(self) -> tuple[list[Draft], list[Rejection]]:
        """The drafts of all cases, and the files that belong to none of them."""
        for path, match in self._loose:
            self._settle_loose(path, match)
        self._pass_over_copies()
        for base in self._decathlons:
            self.pass_over(
                f"{base}/dataset.json", "missing, so 4-D files have the Decathlon's order: FLAIR is the first"
            )
        known = {name for draft in self.drafts.values() for name in (draft.case_id, draft.patient)}
        strangers = []
        for path, reason in self._nameless:
            if _begins_with_one_of(path.removeprefix(self.root), known):
                self.pass_over(path, reason)
            else:
                strangers.append(_stranger(path, reason))
        return list(self.drafts.values()), strangers

    def pass_over(self, path: str, reason: str) -> None:
        """Note a file or folder that is not used."""
        self.passed_over.append(PassedOver(path, reason, reason != UNEXPLAINED))

    def _claim(self, path: str, match: Match) -> None:
        for role, ref, case_id in self._roles(path, match):
            draft = self._draft(match, case_id)
            draft.files[role].append(Claim(ref, match.rule.preferred))

    def _draft(self, match: Match, case_id: str) -> Draft:
        """The draft of a case. Of several layouts that claim its files, the first in order says who it is of."""
        name = canonical(case_id)
        base = match.base.split("/derivatives/")[0]  # BIDS keeps masks there
        draft = self.drafts.get((base, name))
        if draft is not None and not the_matcher().is_before(match.layout, draft.layout):
            return draft
        known = the_matcher().match_id(case_id) if match.layout.is_nameless or case_id != match.case_id else match
        known = known or match
        files = defaultdict(list) if draft is None else draft.files
        patient = known.patient if known.case_id == case_id else case_id
        visit = known.visit if known.case_id == case_id else ""
        is_loose = "/" not in match.rule.path
        draft = Draft(name, base, match.layout, canonical(patient), visit, is_loose, known.layout.tumour_labels, files)
        self.drafts[base, name] = draft
        return draft

    def _roles(self, path: str, match: Match) -> Iterator[tuple[str, VolumeRef, str]]:
        """Role, volume and case of a file; a 4-D file has several roles."""
        if match.role not in (CHANNEL, CHANNELS):
            yield match.role, VolumeRef(path), match.case_id
            return
        channels = self._channels_of(match.base, match.role)
        word = None if match.channel is None else channels.names.get(match.channel)
        if word is None:  # a 4-D file, whose name may end in a number that is no channel
            for modality, number in channels.number_of.items():
                yield modality, VolumeRef(path, number), stem(name_of(path))
            return
        modality = next((name for name, number in channels.number_of.items() if number == match.channel), None)
        if modality is None:
            self.pass_over(path, f"its channel is {printable(word)}, which is none of {', '.join(MODALITIES)}")
        else:
            yield modality, VolumeRef(path), match.case_id

    def _channels_of(self, base: str, role: str) -> Channels:
        if base not in self._channels:
            try:
                self._channels[base] = read_channels(base)
            except UsageError as error:
                self._channels[base] = NO_CHANNELS
                self.problems[base] = str(error)
        channels = self._channels[base]
        if channels is None and role == CHANNEL:
            self.problems[base] = missing(base)
        elif channels is None:
            self._decathlons.add(base)
            return DECATHLON
        return channels or NO_CHANNELS

    def _settle_loose(self, path: str, match: Match) -> None:
        """A file beside others. In the folder of a case, one that only contains the case's name is a copy."""
        owner = self._owners.get(os.path.dirname(path))
        if owner is None or match.case_id.lower() == owner.lower():
            self._claim(path, match)
        elif _contains_name(match.case_id, owner):
            self.pass_over(path, f"it lies in the folder of case {printable(owner)}, whose files have another name")
        elif match.role == MASK:
            self.pass_over(path, f"it lies in the folder of case {printable(owner)} and is not named after it")
        else:
            self._claim(path, match)

    def _pass_over_copies(self) -> None:
        """Of cases that lie beside each other, those that are named like a copy of another one."""
        for (base, case_id), draft in list(self.drafts.items()):
            originals = [case_id.removeprefix(prefix) for prefix in _PREFIXES if case_id.startswith(prefix)]
            original = next((name for name in originals if (base, name) in self.drafts), None)
            if original is None or not draft.is_loose:
                continue
            del self.drafts[base, case_id]
            for claims in draft.files.values():
                for claim in claims:
                    self.pass_over(claim.ref.path, f"its name is that of a copy of case {printable(original)}")


def _contains_name(text: str, name: str) -> bool:
    """Whether a name is in the text as a word of its own, or after what SPM or FSL put before it."""
    before = "|".join(_PREFIXES)
    return re.search(rf"(?:(?<![a-z0-9])|\A(?:{before})){re.escape(name)}(?![a-z0-9])", text, re.IGNORECASE) is not None


def _begins_with_one_of(path: str, known: set[str]) -> bool:
    """Whether the name of the file, or of a folder above it, is a known name or begins with it and a mark."""
    *folders, name = path.split("/")
    for part in (stem(name), *folders):
        text = canonical(part)
        if text in known or any(text[: mark.start()] in known for mark in _MARKS.finditer(text)):
            return True
    return False


def _stranger(path: str, reason: str) -> Rejection:
    name = name_of(path)
    case_id = printable(stem(name))
    files = (("", path),)
    if is_other_format(name):
        return Rejection(case_id, f"{printable(name)}: {other_format(name)}", files)
    if reason == UNEXPLAINED:
        return Rejection(
            case_id,
            f"{printable(name)}: the name gives no modality; name it like {case_id}_flair.nii.gz, "
            "or list it in a table (medad inspect)",
            files,
        )
    return Rejection(case_id, f"{printable(name)}: not used: {reason}", files)


def other_format(name: str) -> str:
    """Why a file of another format is not used, and what to do."""
    return f"{printable(name)[len(stem(printable(name))) :]} is not read; convert it to .nii.gz"

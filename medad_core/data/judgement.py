"""From drafts of cases to cases, or to the reason why they are none.

One decision: nothing is chosen silently. Two files for one role, or two folders for one case, are refused by name, and
a file that another one of the same case is preferred to is passed over by name.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence

from medad_core.data.cases import Case, Rejection, VolumeRef
from medad_core.data.claims import Claim, Claims, Draft, other_format
from medad_core.data.identity import Identity, identity
from medad_core.data.names import MASK, MODALITIES, is_nifti, printable
from medad_core.data.tree import Tree
from medad_core.store.files import name_of
from medad_core.store.regular import Facts, kind_of


def judge(drafts: Sequence[Draft], modality: str, claims: Claims) -> tuple[list[Case], list[Rejection]]:
    """Turn drafts into cases; ids that two datasets claim, and cases without the modality, are rejected."""
    by_id: dict[str, list[Draft]] = defaultdict(list)
    for draft in drafts:
        by_id[draft.case_id].append(draft)
    cases = []
    rejected = []
    owners: dict[Identity, tuple[str, str]] = {}
    for case_id, of_id in sorted(by_id.items()):
        reason = _why_not(of_id, modality, claims) or _why_of_another(of_id[0], modality, owners, claims.tree)
        if reason is None:
            cases.append(_case(of_id[0], claims))
        else:
            files = [(role, claim.ref.path) for draft in of_id for role in draft.files for claim in draft.files[role]]
            rejected.append(Rejection(case_id, reason, tuple(files)))
    return cases, rejected


def _why_of_another(draft: Draft, modality: str, owners: dict[Identity, tuple[str, str]], tree: Tree) -> str | None:
    """Why a volume cannot be this case's: it is that of another one, or it is the mask. None where it can.

    `owners` has the volumes so far. Two cases may share a mask: a store that keeps equal files once has one empty mask.
    """
    path, mask = (
        next((claim.ref.path for claim in _candidates(draft.files.get(kind, []))), None) for kind in (modality, MASK)
    )
    if path is None or (facts := _facts(tree, path)) is None:
        return None
    name = name_of(path)
    if mask is not None and (of_mask := _facts(tree, mask)) is not None and identity(of_mask) == identity(facts):
        return f"{name} and {name_of(mask)} are the same file; give the mask a file of its own"
    owner, first = owners.setdefault(identity(facts), (draft.case_id, name))
    if owner != draft.case_id:
        return f"{name} is the same file as {first} of case {owner}; keep one of them"
    return None


def _case(draft: Draft, claims: Claims) -> Case:
    chosen = {role: ref for role in (*MODALITIES, MASK) if (ref := _choose(draft, role, claims)) is not None}
    mask = chosen.pop(MASK, None)
    labels = draft.tumour_labels
    return Case(
        case_id=draft.case_id,
        volumes=chosen,
        mask=mask,
        patient=draft.patient,
        visit=draft.visit,
        layout=draft.layout.layout,
        tumour_labels=None if labels is None else tuple(labels),
    )


def _choose(draft: Draft, role: str, claims: Claims) -> VolumeRef | None:
    """The file of a role. What is not chosen is passed over."""
    files = draft.files.get(role, [])
    chosen = _candidates(files)
    for claim in files:
        if claim not in chosen:
            is_readable = is_nifti(claim.ref.path)
            reason = "the layout prefers another file" if is_readable else other_format(name_of(claim.ref.path))
            claims.pass_over(claim.ref.path, reason)
    return chosen[0].ref if chosen else None


def _candidates(files: Sequence[Claim]) -> list[Claim]:
    """The files that may be used for a role: those of a format that is read, or the preferred ones among them."""
    readable = [claim for claim in files if is_nifti(claim.ref.path)]
    return [claim for claim in readable if claim.is_preferred] or readable


def _why_not(drafts: Sequence[Draft], modality: str, claims: Claims) -> str | None:
    """Why the drafts of one case id are no case, None where they are."""
    first = drafts[0]
    paths = [claim.ref.path for claims in first.files.values() for claim in claims]
    odd = next((text for text in (*paths, first.case_id) if text != printable(text)), None)
    if odd is not None:
        return f"its name, or its folder's, is not valid UTF-8: {odd.removeprefix(f'{claims.root}/')}; rename it"
    if len(drafts) > 1:
        places = ", ".join(sorted({name for draft in drafts for name in draft.folders}))
        return f"case id found {len(drafts)} times, in {places}; rename or remove all but one, or list one in a table"
    if modality not in first.files:
        kinds = ", ".join(sorted(first.files))
        return f"no {modality} volume (found: {kinds}); add it or choose another with data.modality="
    for kind in (modality, MASK):
        reason = _why_no_file(first, kind, claims.tree) if kind in first.files else None
        if reason is not None:
            return reason
    return None


def _why_no_file(draft: Draft, role: str, tree: Tree) -> str | None:
    """Why a case has no file of a role that can be used, None where it has one; a mask may be of another format."""
    files = draft.files.get(role, [])
    paths = [claim.ref.path for claim in _candidates(files)]
    if not paths:
        name = name_of(files[0].ref.path)
        return None if role == MASK else f"{printable(name)}: {other_format(name)}"
    if len(paths) > 1:
        names = ", ".join(sorted(name_of(path) for path in paths))
        return f"{len(paths)} files for {role}: {names}; keep one, or list it in a table (medad inspect)"
    facts = _facts(tree, paths[0])
    if facts is None and os.path.islink(paths[0]):
        return f"{name_of(paths[0])}: a link to a file that is not there; bring the file back"
    kind = None if facts is None else kind_of(facts)
    return None if kind is None else f"{name_of(paths[0])}: it is {kind}, no regular file; put the file there"


def _facts(tree: Tree, path: str) -> Facts | None:
    try:
        return tree.facts(path)
    except OSError:
        return None

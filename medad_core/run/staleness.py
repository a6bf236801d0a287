"""Which cases of a run have other volumes or masks now, and what is made again for them.

One decision: a part is forgotten in the order answers, prompts, maps, slices, and its recorded inputs stay until it is
made again. So a command that is killed in between leaves parts that are missing, never parts that do not fit together.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from medad_core.data.reads import FileRead, read_again, stamp_of
from medad_core.errors import StoreError
from medad_core.run.cohort import place_of
from medad_core.run.inputs import Inputs, PartInputs
from medad_core.store import Stage
from medad_core.store.collector import collector_paused
from medad_core.store.files import explained
from medad_core.store.listing import facts_of_many
from medad_core.store.objects import is_object
from medad_core.store.regular import Facts, facts_at, open_regular

log = logging.getLogger(__name__)
NAMED = 5  # cases that a message names


@dataclass(frozen=True)
class Comparison:
    """The inputs of a run compared with the files as they are now.

    `changed`: cases with other content, of which some stage has made something, sorted. `renewed`: inputs of parts
    with the same content whose files have another stamp. `unknown`: the number of recorded parts whose inputs an
    earlier version did not record.
    """

    changed: tuple[str, ...] = ()
    renewed: Mapping[int, PartInputs] = field(default_factory=dict)
    unknown: int = 0


@collector_paused()
def compare_inputs(inputs: Inputs, stages: Mapping[str, Stage], root: str) -> Comparison:
    """Compare every recorded input with the file below `root`: its stamp and, if it differs, its content.

    Writes nothing. Raises StoreError if a file cannot be read in a way that may pass.
    """
    slices = stages["slices"]
    plan = slices.find_plan()
    if plan is None:
        return Comparison()
    recorded: set[int] = set()
    changed: set[str] = set()
    renewed = {}
    parts: Iterable[tuple[int, PartInputs]] = inputs.read_all([part.number for part in plan.parts], plan.sha256)
    seen: Mapping[str, Facts] = {}
    if is_object(root):
        parts = [*parts]
        files = (file for _, part in parts for of_case in part.cases.values() for file in of_case)
        seen = facts_of_many(place_of(root, file.path) for file in files)
    for number, part in parts:
        recorded.add(number)
        suspects = {case_id: files for case_id, files in part.cases.items() if not _have_stamps(root, files, seen)}
        if not suspects:
            continue
        now = {case_id: _current_files(root, files) for case_id, files in suspects.items()}
        changed |= {case_id for case_id, files in now.items() if files is None}
        same = {case_id: now.get(case_id) or files for case_id, files in part.cases.items()}
        if same != part.cases:
            renewed[number] = part.replace(cases=same)
    unknown = sum(record.done > 0 and number not in recorded for number, record in slices.records().items())
    return Comparison(tuple(sorted(changed & _made_of(stages, changed))), renewed, unknown)


def forget_cases(stages: Iterable[Stage], case_ids: Collection[str]) -> list[str]:
    """Forget the parts of `stages`, given in their order, that hold one of the cases; returns names of these parts.

    The last stage is the first to forget. Raises StoreError.
    """
    forgotten = []
    for stage in reversed(list(stages)):
        for number in _parts_of(stage, case_ids):
            stage.forget(number)
            forgotten.append(f"{stage.name} part {number}")
    return forgotten


def named(case_ids: Sequence[str]) -> str:
    """Such as `a, b, c, d, e and 3 more`."""
    more = len(case_ids) - NAMED
    return ", ".join(case_ids[:NAMED]) + (f" and {more} more" if more > 0 else "")


def refuse_changed(run: str, changed: Sequence[str]) -> None:
    """Raise StoreError naming the changed cases, if there are any."""
    if changed:
        cases = "1 case has" if len(changed) == 1 else f"{len(changed)} cases have"
        raise StoreError(
            f"{cases} volumes or masks that changed since {run} was made: {named(changed)}; "
            "add --refresh to make these cases again, or choose another --out"
        )


def warn_unknown(run: str, unknown: int) -> None:
    """Log that parts of earlier versions cannot be compared, if there are any."""
    if unknown:
        log.warning(
            "%s: %d parts were made by an earlier version, which did not record its inputs: "
            "whether their volumes and masks changed since cannot be seen",
            run,
            unknown,
        )


def same_content(root: str, file: FileRead) -> bool | None:
    """Whether a file below `root` has the content that was read of it; None if it is not there or not readable.

    Raises StoreError if it cannot be read in a way that may pass.
    """
    path = place_of(root, file.path)
    with explained("read", path):
        try:
            open_regular(path).close()
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None
    return _current_file(path, file) is not None


def _made_of(stages: Mapping[str, Stage], case_ids: Collection[str]) -> set[str]:
    """Those of the cases of which some stage has made something."""
    made: set[str] = set()
    for stage in stages.values() if case_ids else ():
        parts = stage.plan().parts if stage.find_plan() is not None else ()
        made.update(key for number in _parts_of(stage, case_ids) for key in parts[number].inputs)
    return made.intersection(case_ids)


def _parts_of(stage: Stage, case_ids: Collection[str]) -> list[int]:
    """The recorded parts of a stage that hold one of the cases."""
    plan = stage.find_plan()
    if plan is None:
        return []
    planned = {plan.part_of[case_id] for case_id in case_ids if case_id in plan.part_of}
    return sorted(planned & stage.records().keys()) if planned else []


def _have_stamps(root: str, files: Sequence[FileRead], seen: Mapping[str, Facts]) -> bool:
    """Whether all files are there with the stamps that are recorded. There may be 200,000 of them, some `seen`."""
    for file in files:
        path = place_of(root, file.path)
        try:
            facts = seen.get(path) or facts_at(path)
        except OSError:
            return False
        if facts.st_size != file.size or stamp_of(facts) != file.stamp:
            return False
    return True


def _current_files(root: str, files: Sequence[FileRead]) -> tuple[FileRead, ...] | None:
    """The same files with their stamps as they are now; None if one has other content."""
    current = []
    for file in files:
        now = _current_file(place_of(root, file.path), file)
        if now is None:
            return None
        current.append(now)
    return tuple(current)


def _current_file(path: str, file: FileRead) -> FileRead | None:
    with explained("read", path):
        try:
            facts = facts_at(path)
            if facts.st_size == file.size and stamp_of(facts) == file.stamp:
                return file
            if facts.st_size != file.size and file.sha256 is not None:
                return None
            now = read_again(path, file.read)
        except (FileNotFoundError, NotADirectoryError, PermissionError):  # as before, or it had content then
            return file if file.sha256 is None else None
    return now.replace(path=file.path) if now.content == file.content else None

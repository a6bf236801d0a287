"""In a few lines: what was taken for a case, by which rule, and what was not."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from medad_core.data.cases import Case, Discovery
from medad_core.data.names import printable, stem
from medad_core.media import visible

_NAMED = 3
_LINES = 10
_ANY_NAMES = ("case-folder", "flat", "decathlon")  # layouts that take any name for a case


def summarise(discovery: Discovery, modality: str) -> list[str]:
    """At most ten lines: cases by layout, where masks come from, what is passed over, what is refused and why."""
    cases = discovery.cases
    patients = len({case.patient for case in cases})
    masks = [case.mask.path for case in cases if case.mask is not None]
    refused = f", {len(discovery.rejected)} refused" if discovery.rejected else ""
    lines = [f"{_count(len(cases), 'case')} of {_count(patients, 'patient')}{refused}: {_by_layout(cases)}"]
    lines.append(f"{modality} from {_name_endings([case.volumes[modality].path for case in cases])}")
    lines.append(f"masks of {len(masks)} of {len(cases)} from {_name_endings(masks)}" if masks else "no masks")
    lines += _guessed_patients(cases)
    for reason, names in _grouped([(item.reason, item.case_id) for item in discovery.rejected]):
        lines.append(f"refused: {_some(names)}: {reason}")
    for reason, paths in _grouped([(item.reason, item.path) for item in discovery.passed_over]):
        lines.append(f"not used: {_some(_short_names(paths))}: {reason}")
    if len(lines) > _LINES:
        more = len(lines) - _LINES + 1
        lines = [*lines[: _LINES - 1], f"and {more} more lines; `medad inspect DATA --out cases.csv` shows every file"]
    return [visible(line) for line in lines]


def _guessed_patients(cases: Sequence[Case]) -> list[str]:
    """A line if every case of a layout of any names is taken for a patient of its own."""
    alone = [case for case in cases if case.layout in _ANY_NAMES and case.patient == case.case_id]
    if len(alone) < 2:
        return []
    return [f"each of {len(alone)} is taken for a patient of its own; if some are visits of one, give data.patients"]


def _short_names(paths: Sequence[str]) -> list[str]:
    """The files' names, with their folder's where they would be the same."""
    names = [os.path.basename(path) for path in paths]
    if len(set(names)) == len(names):
        return names
    return ["/".join(path.split("/")[-2:]) for path in paths]


def _by_layout(cases: Sequence[Case]) -> str:
    layouts = Counter(case.layout for case in cases)
    return ", ".join(f"{count} by the layout {name}" for name, count in layouts.most_common()) or "none"


def _name_endings(paths: Sequence[str]) -> str:
    """How the names of files end: from the last mark on."""
    endings = Counter(_ending(path) for path in paths)
    shown = [f"*{printable(ending)} ({count})" for ending, count in endings.most_common(_NAMED)]
    return ", ".join(shown) + (", …" if len(endings) > _NAMED else "")


def _ending(path: str) -> str:
    name = os.path.basename(path)
    base = stem(name)
    return name[max(base.rfind("_"), base.rfind("-"), 0) :]


def _grouped(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for reason, name in pairs:
        groups.setdefault(reason, []).append(printable(name))
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"

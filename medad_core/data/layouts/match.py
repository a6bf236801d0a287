"""Compares the end of a path with the paths of all layouts.

One decision: the layouts are tried in their order and the first that matches decides, within it the path that stands
first. A path is compared only with layouts whose `needs` it contains, so a file costs a few comparisons.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from medad_core.data.layouts.rules import KIND, Layout, PathRule, load_layouts

_BRACES = re.compile(r"\{([a-z]+)\}")


class Match(NamedTuple):
    """What a path says. `base` is the path before the part that matched: the folder of the dataset.

    `role` is a modality, "mask", "channel", "channels" or "passed over"; `channel` is the number in the name.
    """

    layout: Layout
    rule: PathRule
    role: str
    base: str
    case_id: str
    patient: str
    visit: str
    channel: int | None


@dataclass(frozen=True)
class _Rule:
    order: int
    layout: Layout
    rule: PathRule


class _Expressions:
    """The paths of one layout: one regular expression for each depth."""

    def __init__(self, layout: Layout) -> None:
        self.needs = layout.needs
        self._rules = [_Rule(order, layout, rule) for order, rule in enumerate(layout.paths)]
        by_depth: dict[int, list[_Rule]] = defaultdict(list)
        for rule in self._rules:
            by_depth[rule.rule.path.count("/") + 1].append(rule)
        self._by_depth = {
            depth: re.compile("|".join(map(_expression, rules)), re.IGNORECASE | re.DOTALL)
            for depth, rules in by_depth.items()
        }

    def match(self, path: str, tails: Sequence[str]) -> Match | None:
        """`tails` are the last name of the path, the last two, and so on."""
        best: tuple[_Rule, re.Match[str]] | None = None
        for depth, expression in self._by_depth.items():
            found = expression.fullmatch(tails[depth - 1]) if depth <= len(tails) else None
            if found is None or found.lastgroup is None:
                continue
            rule = self._rules[int(found.lastgroup[1:])]  # the group of a whole path closes last
            if best is None or rule.order < best[0].order:
                best = rule, found
        return None if best is None else _read(path, *best)


class Matcher:
    """All layouts, ready to be compared with paths."""

    def __init__(self, layouts: Sequence[Layout]) -> None:
        self._expressions = [_Expressions(layout) for layout in layouts]
        self._order = {layout.layout: number for number, layout in enumerate(layouts)}
        self._deepest = max(rule.path.count("/") + 1 for layout in layouts for rule in layout.paths)

    def match(self, path: str) -> Match | None:
        """What the layouts say of a path without extension, None where none of them explains it."""
        names = path.split("/")
        tails = ["/".join(names[-depth:]) for depth in range(1, min(self._deepest, len(names)) + 1)]
        lower = tails[-1].lower()
        for expressions in self._expressions:
            if expressions.needs in lower:
                found = expressions.match(path, tails)
                if found is not None:
                    return found
        return None

    def match_id(self, case_id: str) -> Match | None:
        """What the layouts say of a case id alone, such as that of a copy in another layout; None for nothing."""
        match = self.match(f"{case_id}_flair")
        return match if match is not None and match.case_id == case_id else None

    def is_before(self, layout: Layout, other: Layout) -> bool:
        """Whether `layout` is tried before `other`."""
        return self._order[layout.layout] < self._order[other.layout]


@cache
def the_matcher() -> Matcher:
    """The matcher of all layouts that medad knows."""
    return Matcher(load_layouts())


def _expression(rule: _Rule) -> str:
    """The path as a regular expression whose groups have names of their own."""
    seen: set[str] = set()
    return f"(?P<r{rule.order}>{_expanded(rule.rule.path, rule, seen, literal=True)})"


def _expanded(text: str, rule: _Rule, seen: set[str], literal: bool) -> str:
    parts = _BRACES.split(text)  # literal text and names of groups in turn
    expanded = [re.escape(part) if literal else part for part in parts[::2]]
    for number, name in enumerate(parts[1::2]):
        expanded[number] += _group(name, rule, seen)
    return "".join(expanded)


def _group(name: str, rule: _Rule, seen: set[str]) -> str:
    if name == "any":
        return "[^/]*?"
    unique = f"r{rule.order}_{name}"
    if name in seen:
        return f"(?P={unique})"
    seen.add(name)
    if name == "kind":
        words = sorted(rule.layout.modality_of, key=len, reverse=True)
        inner = "|".join(map(re.escape, words))
    else:
        inner = _expanded(rule.layout.groups[name], rule, seen, literal=False)
    return f"(?P<{unique}>{inner})"


@cache
def _split(template: str) -> tuple[str, ...]:
    return tuple(_BRACES.split(template))


def _read(path: str, rule: _Rule, found: re.Match[str]) -> Match:
    names = found.re.groupindex
    prefix = f"r{rule.order}_"

    def text_of(name: str) -> str:
        return found[prefix + name] or "" if prefix + name in names else ""

    def filled(template: str) -> str:
        texts = _split(template)  # literal text and names of groups in turn
        if len(texts) == 3 and not texts[0] and not texts[2]:
            return text_of(texts[1])
        return "".join(text_of(text) if number % 2 else text for number, text in enumerate(texts))

    layout = rule.layout
    case_id = filled(layout.case_id)
    channel = text_of("channel")
    return Match(
        layout=layout,
        rule=rule.rule,
        role=layout.modality_of[text_of("kind").lower()] if rule.rule.role == KIND else rule.rule.role,
        base=path[: len(path) - len(found[0])].rstrip("/"),
        case_id=case_id,
        patient=filled(layout.patient) or case_id,
        visit=filled(layout.visit),
        channel=int(channel) if channel else None,
    )

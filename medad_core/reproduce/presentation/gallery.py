"""`gallery.html`: the worst errors of every row, in one file that asks nothing of the network.

One decision: a slice is stored once, however many rows got it wrong, and every card says at which threshold and score
it is an error, so that a picture alone convinces nobody of anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from medad_core.report.colour import legend_gradient
from medad_core.report.environment import page_environment
from medad_core.report.figures import OUTLINE, View, brain_view, map_uri, outline_path, slice_uri
from medad_core.reproduce.presentation.facts import FALSE_NEGATIVE, FALSE_POSITIVE, GalleryRow, GallerySlice
from medad_core.reproduce.presentation.sheet import Sheet
from medad_core.reproduce.presentation.words import GENERATED, heading, rule_words, small
from medad_core.reproduce.schema import PHANTOMS

_KINDS = {FALSE_POSITIVE: "False alarms: no tumour, highest scores", FALSE_NEGATIVE: "Missed: tumour, lowest scores"}


@dataclass(frozen=True)
class _Picture:
    """One slice as it is stored in the page under `key`; sizes and `view` in pixels."""

    key: str
    width: int
    height: int
    view: View
    image: str
    outline: str


@dataclass(frozen=True)
class _Card:
    item: GallerySlice
    picture: _Picture
    veil: str | None


@dataclass(frozen=True)
class _Part:
    """False positives or negatives of a row: how many there are, and those that are shown."""

    kind: str
    title: str
    total: int
    cards: tuple[_Card, ...]


@dataclass(frozen=True)
class _Section:
    """A row in a group; `missing` says why it has no errors to show."""

    key: str
    title: str
    rule: str
    missing: str | None
    parts: tuple[_Part, ...]


def render_gallery(sheet: Sheet, rows: Sequence[GalleryRow]) -> str:
    """The page as a string: UTF-8, self-contained, readable on a phone.

    Rows come in the order of the table, patients first.
    """
    environment = page_environment(number=small, heading=heading)
    pictures = _pictures(rows)
    return environment.get_template("gallery.html.j2").render(
        groups=[(group, list(_sections(sheet, group.name, rows, pictures))) for group in sheet.groups],
        pictures=pictures.values(),
        facts=sheet.facts,
        generated=GENERATED,
        phantoms=PHANTOMS,
        legend=legend_gradient(),
        outline_colour=OUTLINE,
    )


def _sections(
    sheet: Sheet, group: str, rows: Sequence[GalleryRow], pictures: dict[tuple[str, int], _Picture]
) -> Iterable[_Section]:
    """One section a row of the group that failed, or whose errors are known."""
    errors = {row.row: row for row in rows if row.group == group}
    for row in sheet.rows:
        of_row = errors.get(row.name)
        failed = sheet.failed(row.name)
        key = f"{group}-{row.name}"
        rule = "" if of_row is None else rule_words(of_row.rule, sheet.facts.patient_slices)
        if failed:
            yield _Section(key, row.title, rule, f"failed: {failed}", ())
        elif of_row is not None:
            undecided = _undecided(sheet, of_row)
            parts = () if undecided else tuple(_part(of_row, kind, pictures) for kind in _KINDS)
            yield _Section(key, row.title, rule, undecided, parts)


def _undecided(sheet: Sheet, row: GalleryRow) -> str | None:
    """Why a row decided nothing that could be wrong: in a fold without threshold, no slice is an error."""
    wanted = (row.row, row.group, "image", row.rule)
    for note in sheet.facts.thresholds:
        if (note.row, note.group, note.level, note.rule) == wanted and note.value is None and not row.items:
            return f"no decisions: fold {note.fold} has no threshold ({note.reason})"
    return None


def _part(row: GalleryRow, kind: str, pictures: dict[tuple[str, int], _Picture]) -> _Part:
    cards = tuple(_card(item, pictures) for item in row.worst(kind))
    return _Part(kind, _KINDS[kind], row.total(kind), cards)


def _card(item: GallerySlice, pictures: dict[tuple[str, int], _Picture]) -> _Card:
    veil = None if item.anomaly_map is None else map_uri(item.anomaly_map)
    return _Card(item, pictures[_place(item)], veil)


def _pictures(rows: Iterable[GalleryRow]) -> dict[tuple[str, int], _Picture]:
    """Every slice once. Slices of one shape share a view, so that sizes can be compared."""
    items = {_place(item): item for row in rows for item in row.items}
    images: dict[tuple[int, ...], list[np.ndarray]] = {}
    for item in items.values():
        images.setdefault(item.image.shape, []).append(item.image)
    views = {shape: brain_view(same_shape) for shape, same_shape in images.items()}
    return {
        place: _picture(item, f"s{number}", views[item.image.shape])
        for number, (place, item) in enumerate(items.items())
    }


def _picture(item: GallerySlice, key: str, view: View) -> _Picture:
    height, width = item.image.shape
    return _Picture(key, width, height, view, slice_uri(np.asarray(item.image)), outline_path(item.mask))


def _place(item: GallerySlice) -> tuple[str, int]:
    return item.case_id, item.slice_index

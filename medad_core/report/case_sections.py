"""A `CaseReport` as sections, in the language of its words.

One decision: who has thirty seconds reads the impression, the doubts and the pictures, and they come first. Then come
the measurements, what the language model says, and what the report cannot say.
"""

from __future__ import annotations

from collections.abc import Iterator

from medad_core.report.blocks import Bullets, Cell, Picture, Section, Table, Text
from medad_core.report.case import CaseReport, KeySlice, LesionFacts, Lesions
from medad_core.report.spoken import spoken_section
from medad_core.report.words import ML, MM, SHARE, Words


def case_sections(report: CaseReport, words: Words) -> tuple[Section, ...]:
    """All sections of a report, in the order in which they are read. `words` are those of its language."""
    sections = (
        _impression(report, words),
        _doubts(report, words),
        _key_images(report, words),
        _lesions(report, words),
        spoken_section(report, words),
        _limits(report, words),
        _made_with(report, words),
    )
    return tuple(section for section in sections if section.blocks)


def _impression(report: CaseReport, words: Words) -> Section:
    blocks = [Text(words("phantom"), "phantom")] if report.phantom else []
    blocks += [Text(" ".join(report.impression), "lead"), Text(words("disclaimer"), "notice")]
    return Section("impression", words("impression.title"), tuple(blocks))


def _doubts(report: CaseReport, words: Words) -> Section:
    doubts = []
    if report.finding == "map only":
        doubts.append(words("doubts.finding_map"))
    if report.finding == "language model only":
        doubts.append(words("doubts.finding_llm"))
    if near_half := report.screened.near_half:
        doubts.append(words.counted("doubts.near_half", near_half))
    if unreadable := report.screened.unreadable:
        doubts.append(words.counted("doubts.unreadable", unreadable))
    doubts += report.warnings
    return Section("doubts", words("doubts.title"), (Bullets(tuple(doubts)),) if doubts else ())


def _key_images(report: CaseReport, words: Words) -> Section:
    pictures = [Picture(one.slice_index, one.picture, _caption(one, words)) for one in report.key_slices if one.picture]
    if not pictures:
        return Section("key-images", words("key_images.title"), ())
    panels = words("key_images.panels" if report.true is None else "key_images.panels_with_mask")
    blocks = [Text(f"{panels}. {words('key_images.convention')}", "small"), *pictures]
    if left_out := len(report.key_slices) - len(pictures):
        blocks.append(Text(words.counted("key_images.not_shown", left_out), "small"))
    return Section("key-images", words("key_images.title"), tuple(blocks))


def _caption(one: KeySlice, words: Words) -> str:
    shown = words("key_images.of_nothing")
    if one.lesions:
        shown = words.counted("key_images.of_lesions", len(one.lesions), numbers=words.listed(map(str, one.lesions)))
    numbers = words(
        "key_images.numbers",
        score=words.number(one.anomaly_score, SHARE),
        p_yes=words.number(one.p_yes, SHARE),
    )
    return f"{words('key_images.slice', slice=one.slice_index)}: {shown}; {numbers}"


def _lesions(report: CaseReport, words: Words) -> Section:
    title = words("lesion_tables.map", threshold=words.plain(report.threshold))
    blocks = list(_lesion_blocks(report.found, title, words("lesion_tables.none_of_map"), "in_mask", report, words))
    if report.true is not None:
        title = words("lesion_tables.mask")
        blocks += _lesion_blocks(report.true, title, words("lesion_tables.none_of_mask"), "in_map", report, words)
    if any(lesions is not None and lesions.is_cut for lesions in (report.found, report.true)):
        blocks.append(Text(words("lesion_tables.cut"), "small"))
    return Section("lesions", words("lesion_tables.title"), tuple(blocks))


def _lesion_blocks(
    lesions: Lesions, title: str, without: str, other: str, report: CaseReport, words: Words
) -> Iterator[Table | Text]:
    if not lesions.each:
        yield Text(without)
        return
    compared = report.true is not None
    names = ("number", "volume", "diameters", "slices", "key_slice", "side", "regions", "centroid")
    head = [words(f"lesion_tables.{name}") for name in names]
    rows = [_lesion_cells(one, words) for one in lesions.each]
    widths = [6, 12, 14, 12, 10, 11, 21, 19]
    if compared:
        head.append(words(f"lesion_tables.{other}"))
        widths.append(9)
        for cells, one in zip(rows, lesions.each, strict=True):
            cells.append(Cell(words.value("", "yes" if one.matched else "no")))
    if len(rows) > 1:
        together = [words("lesion_tables.sum"), _at_least(lesions.volume_ml, ML, lesions.is_cut, words)]
        rows.append([Cell(text) for text in (*together, *[""] * (len(head) - len(together)))])
    yield Table(title, tuple(head), tuple(map(tuple, rows)), tuple(widths), frozenset((0, 1, 2, 3, 4)))


def _lesion_cells(one: LesionFacts, words: Words) -> list[Cell]:
    regions = words("none") if one.regions is None else words.regions(one.regions)
    centroid = (one.x_mm, one.y_mm, one.z_mm)
    texts = (
        str(one.lesion),
        _at_least(one.volume_ml, ML, one.is_cut, words),
        f"{_at_least(one.diameter_mm, MM, one.is_cut, words)} × {words.number(one.perpendicular_mm, MM)}",
        f"{one.first_slice}–{one.last_slice}",
        str(one.widest_slice),
        words.known("sides", one.side),
        regions,
        words("none") if None in centroid else " / ".join(words.number(value, MM) for value in centroid),
    )
    return [Cell(text) for text in texts]


def _at_least(value: float, digits: int, is_cut: bool, words: Words) -> str:
    number = words.number(value, digits)
    return words("at_least", number=number) if is_cut else number


def _limits(report: CaseReport, words: Words) -> Section:
    ends = {"first": report.first_slice, "last": report.last_slice}
    seen = report.screened.slices
    lines = list(report.caveats)
    if report.trained_on:
        lines.append(words("limits.trained_on"))
    if seen == 1:
        lines.append(words("limits.single", slice=report.first_slice))
    else:
        lines.append(words("limits.range", slices=words.counted("slices", seen), range=words("range", **ends)))
    values = {"threshold": words.plain(report.threshold), "smallest": words.plain(report.smallest_ml)}
    lines.append(words("limits.threshold", **values))
    if report.true is None:
        lines.append(words("limits.no_mask"))
    if report.regions_not_named:
        reason = words.known("reasons", report.regions_not_named)
        lines.append(words("limits.regions_not_named", reason=reason))
    else:
        lines.append(words("limits.anatomy"))
    return Section("limits", words("limits.title"), (Bullets(tuple(lines)),))


def _made_with(report: CaseReport, words: Words) -> Section:
    slices = words("range", first=report.first_slice, last=report.last_slice)
    facts = [
        ("patient", report.patient),
        ("cohort", report.cohort),
        ("split", report.split),
        ("slices", slices),
        ("look_at", str(report.look_at)),
    ]
    pairs = [(words(f"made_with.{name}"), text) for name, text in facts]
    pairs += [(words.known("made_with.roles", one.role), one.name) for one in report.models]
    pairs += [(one.role, one.name) for one in report.versions]
    pairs += [
        (words("made_with.written_by"), report.written_by),
        (words("made_with.fingerprint"), report.fingerprint),
        (words("made_with.inputs"), report.inputs_sha256),
    ]
    rows = tuple((Cell(name), Cell(text)) for name, text in pairs)
    return Section("made-with", words("made_with.title"), (Table("", (), rows, (30, 70)),))

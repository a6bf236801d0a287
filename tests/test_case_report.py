"""What a report of a case says: its statements, its words in three languages, its forms, and its schema."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from pdf_text import pages_of
from pydantic import ValidationError

from medad_core.data.findings import find
from medad_core.facts.case import NO_PLACE, OTHER_GRID, PHANTOM
from medad_core.facts.regions import REGIONS
from medad_core.llm.questions import Question, families
from medad_core.media import visible
from medad_core.report import GalleryItem
from medad_core.report.blocks import Bullets, Table, Text
from medad_core.report.case import SHOWN, CaseReport, KeySlice, LesionFacts, Lesions, Named, Screened, schema_text
from medad_core.report.case_html import case_html
from medad_core.report.case_markdown import case_markdown
from medad_core.report.case_pdf import case_pdf
from medad_core.report.case_sections import case_sections
from medad_core.report.fonts import printable
from medad_core.report.impression import impression
from medad_core.report.key_image import key_image
from medad_core.report.words import LANGUAGES, words_of
from medad_core.stages.agreement import SliceEvidence, statements_of
from medad_core.store import LESIONS

SHAPE = (90, 90)
HOSTILE = "<img src=x onerror=alert(1)>"
SPOKEN = "<script>alert(1)</script> =cmd() \u202eevil\x1b[31m | *x* 🧠"


def lesion(number: int = 1, **changes: Any) -> LesionFacts:
    values = {
        "lesion": number,
        "volume_ml": 34.1256,
        "first_slice": 60,
        "last_slice": 80,
        "diameter_mm": 41.49,
        "perpendicular_mm": 29.51,
        "widest_slice": 77,
        "slice": 70.25,
        "row": 20.0,
        "column": 15.0,
        "x_mm": 30.4,
        "y_mm": -10.6,
        "z_mm": 20.0,
        "side": "right",
        "right": 1.0,
        "crosses_midline": False,
        "is_cut": False,
        "regions": ("frontal lobe", "insula"),
        "matched": None,
    }
    return LesionFacts(**values | changes)


def lesions(*each: LesionFacts) -> Lesions:
    return Lesions(
        lesions=len(each),
        volume_ml=sum((one.volume_ml for one in each), 0.0),
        longest_mm=max((one.diameter_mm for one in each), default=None),
        side=each[0].side if each else None,
        regions=("frontal lobe", "insula") if each else (),
        is_cut=any(one.is_cut for one in each),
        each=each,
    )


def disc(row: float, column: float, radius: float) -> np.ndarray:
    rows, columns = np.indices(SHAPE)
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def evidence(found: np.ndarray, *each: LesionFacts, mask: np.ndarray | None = None) -> SliceEvidence:
    brain = np.ones(SHAPE, bool)
    true = None if mask is None else find(mask, brain, 1.0)
    return SliceEvidence(find(found, brain, 1.0), each, mask is not None, true, SHAPE, 77)


def said(answer: str, at: SliceEvidence, verdict: str | None = "yes", named: str | None = None, **further: str):
    """The statements of a slice: the answer to presence, then answers to other questions by family."""
    rows = [
        {"question": family, "answer": text, "value": Question(family).read(text)} for family, text in further.items()
    ]
    return statements_of({"answer": answer, "verdict": verdict, "location": named}, rows, at)


def report(language: str = "en", found: Lesions | None = None, true: Lesions | None = None, **changes: Any):
    """A report of a case with one lesion, and answers that agree in part."""
    found = lesions(lesion()) if found is None else found
    words = words_of(language)
    at = evidence(disc(20, 15, 10), lesion(), mask=None if true is None else disc(20, 15, 10))
    statements = said(SPOKEN, at, named="top", size="The anomaly is between 1 and 3 cm.")
    screened = Screened(slices=21, slices_yes=18, unreadable=1, near_half=2, highest_p_yes=0.98765, highest_score=0.9)
    numbers = tuple(one.lesion for one in found.each)
    key = KeySlice(
        slice_index=77, lesions=numbers, anomaly_score=0.87654, p_yes=0.91, statements=statements, picture="c.png"
    )
    values = {
        "language": language,
        "cohort": "ward",
        "case_id": "case-1",
        "patient": "patient-1",
        "split": "screen",
        "phantom": False,
        "first_slice": 60,
        "last_slice": 80,
        "threshold": 0.5,
        "threshold_policy": "fixed",
        "smallest_ml": 0.05,
        "impression": impression(found, (60, 80), (0.5, 0.05), screened, (key,), words),
        "finding": "map and language model",
        "look_at": 77,
        "found": found,
        "true": true,
        "regions_not_named": None,
        "screened": screened,
        "key_slices": (key,),
        "questions": ("presence", "size"),
        "further_questions": ("location", "number"),
        "warnings": ("looks like a T1",),
        "caveats": ("Trained on gliomas.",),
        "trained_on": False,
        "models": (Named(role="language model", name="smollm2-135m"),),
        "versions": (Named(role="medad", name="0.1.0"),),
        "written_by": "medad 0.1.0",
        "fingerprint": "f" * 64,
        "inputs_sha256": "0" * 64,
    }
    return CaseReport(**values | changes)


def squeezed(text: str) -> str:
    """Without white space: lines are broken where a form breaks them."""
    return re.sub(r"\s", "", text)


def forms_of(given: CaseReport) -> dict[str, str]:
    """The squeezed text of every form: HTML as a browser shows it, PDF as a reader copies it."""
    page = _Shown()
    page.feed(case_html(given, {}))
    texts = {"md": case_markdown(given).replace("\\", ""), "html": page.text, "pdf": printed_text(given)}
    return {form: squeezed(text) for form, text in texts.items()}


def printed_text(given: CaseReport) -> str:
    return squeezed("".join(pages_of(case_pdf(given, {}))))


def texts_of(given: CaseReport) -> list[str]:
    """All that a report says, in its words, as no form has changed it yet."""
    texts = []
    for section in case_sections(given, words_of(given.language)):
        texts.append(section.title)
        for block in section.blocks:
            if isinstance(block, Text):
                texts.append(block.text)
            elif isinstance(block, Bullets):
                texts += block.items
            elif isinstance(block, Table):
                texts += [block.title, *block.head, *(cell.text for row in block.rows for cell in row)]
            else:
                texts.append(block.caption)
    return texts


class _Shown(HTMLParser):
    """The text of a page, and its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.elements: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.add(tag)
        self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data if self.lasttag != "style" else ""


# --- agreement ------------------------------------------------------------------------------------------------------


def matches(statement) -> dict[str, str]:
    return {one.source: one.match for one in statement.compared}


def test_a_statement_agrees_where_map_and_facts_say_the_same():
    presence, place = said("Yes, …", evidence(disc(20, 15, 10), lesion()), named="top left")
    assert (presence.subject, presence.value, presence.agrees) == ("presence", "yes", True)
    assert (place.subject, place.value, place.agrees) == ("location", "top left", True)
    assert matches(place) == {"map": "same", "facts": "same"} and place.with_mask is None
    assert presence.answer == place.answer == "Yes, …" and presence.asked == Question("presence").worded()


def test_a_cell_beside_the_one_of_the_map_is_no_agreement():
    at = evidence(disc(20, 15, 10), lesion())
    for cell, match in (("top", "neighbour"), ("center", "neighbour"), ("right", "other"), ("bottom", "other")):
        (_, place) = said("Yes, …", at, named=cell)
        assert matches(place) == {"map": match, "facts": match} and place.agrees is False


def test_place_side_and_size_of_a_lesion_are_its_own_where_it_is_widest_and_count_nowhere_else():
    elsewhere = evidence(disc(20, 15, 10), lesion(widest_slice=70))
    size = "The anomaly is between 1 and 3 cm."
    presence, place, said_size, number = said(
        "Yes, …", elsewhere, named="top left", size=size, number="There is one anomaly in the image."
    )
    assert matches(place) == {"map": "same"} and matches(said_size) == {"map": "same"}  # the lesion has 41 mm elsewhere
    assert matches(presence) == matches(number) == {"map": "same", "facts": "same"}


def test_a_yes_on_an_empty_map_differs_and_so_does_the_place_it_names():
    presence, place = said("Yes, …", evidence(np.zeros(SHAPE, bool)), named="top")
    assert [(one.source, one.value, one.match) for one in presence.compared] == [
        ("map", "no", "other"),
        ("facts", "no", "other"),
    ]
    assert [one.value for one in place.compared] == ["none", "none"] and place.agrees is False
    (no,) = said("No, …", evidence(np.zeros(SHAPE, bool)), verdict="no")
    assert no.agrees is True


def test_a_speck_that_is_no_lesion_is_on_the_map_and_not_in_the_facts():
    (presence,) = said("Yes, …", evidence(disc(20, 15, 2)))
    assert matches(presence) == {"map": "same", "facts": "other"} and presence.agrees is False


def test_an_answer_that_cannot_be_read_is_compared_with_nothing():
    (presence, size) = said("Maybe.", evidence(disc(20, 15, 10), lesion()), verdict=None, size="Large.")
    assert presence.value is size.value is presence.agrees is size.agrees is None
    assert presence.compared == size.compared == () and (presence.answer, size.answer) == ("Maybe.", "Large.")


def test_the_mask_stands_apart_and_does_not_count_as_agreement():
    at = evidence(disc(20, 15, 10), lesion(), mask=disc(70, 70, 10))
    _, place = said("Yes, …", at, named="top left")
    assert place.agrees is True and (place.with_mask.value, place.with_mask.match) == ("bottom right", "other")
    healthy = evidence(disc(20, 15, 10), lesion(), mask=np.zeros(SHAPE, bool))
    presence, _ = said("Yes, …", healthy, named="top left")
    assert presence.with_mask.value == "no" and presence.agrees is True


def test_every_question_is_compared_with_what_the_lesions_of_the_slice_say():
    two = (lesion(1, diameter_mm=31.0), lesion(2, row=20.0, column=75.0, side="left"))
    at = evidence(disc(20, 15, 16) | disc(20, 75, 5), *two)
    answers = {
        "location": "The anomaly is at the top right of the image.",
        "side": "The anomaly is in both hemispheres.",
        "size": "The anomaly is larger than 3 cm.",
        "number": "There are several anomalies in the image.",
    }
    _, location, side, size, number = said("Yes, …", at, **answers)
    facts = {one.subject: one.compared[1].value for one in (location, side, size, number)}
    assert facts == {"location": "top left, top right", "side": "both", "size": "over 3 cm", "number": "several"}
    assert matches(location)["facts"] == "same"  # one of the two
    assert all(one.agrees for one in (size, number)) and matches(side)["facts"] == "same"
    (_, nothing) = said("Yes, …", evidence(np.zeros(SHAPE, bool)), size="There is no anomaly in the image.")
    assert nothing.value == "none" and nothing.agrees is True


def test_halves_of_the_picture_are_compared_with_the_map_only():
    at = evidence(disc(20, 15, 10), lesion())
    rows = [{"question": "region: left half", "answer": "…", "value": "yes"}]
    (_, region) = statements_of({"answer": "…", "verdict": "yes", "location": None}, rows, at)
    assert (region.subject, matches(region), region.agrees) == ("region", {"map": "same"}, True)
    assert "left half" in region.asked


def test_the_truth_of_the_mask_is_that_of_the_questions_table():
    mask = disc(70, 20, 12)
    at = evidence(disc(70, 20, 12), lesion(), mask=mask)
    finding = find(mask, np.ones(SHAPE, bool), 1.0)
    for family in ("location", "side", "size", "number"):
        question = Question(family)
        (_, stated) = said("Yes, …", at, **{family: question.answer(finding)})
        assert stated.with_mask.value == question.truth(finding) and stated.with_mask.match == "same"


# --- words ----------------------------------------------------------------------------------------------------------


def entries(group: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, entry in group.items():
        if isinstance(entry, Mapping):
            yield from entries(entry, f"{before}{name}.")
        else:
            yield f"{before}{name}", entry


def gaps(text: str) -> list[str]:
    return sorted({name for _, name, _, _ in string.Formatter().parse(text) if name})


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_the_keys_and_gaps_of_english(language):
    english, other = (dict(entries(words_of(name).entries)) for name in ("en", language))
    assert list(english) == list(other)
    assert {key: gaps(text) for key, text in english.items()} == {key: gaps(text) for key, text in other.items()}
    assert all(other.values())


def test_closed_lists_are_in_the_catalogue():
    words = words_of("en")
    assert set(words.entries["regions"]) == set(REGIONS)
    assert set(words.entries["reasons"]) == {OTHER_GRID, PHANTOM, NO_PLACE}
    assert set(words.entries["subjects"]) == set(families())
    spoken = {value for family in ("presence", "size", "number") for value in Question(family).answers.values()}
    assert spoken <= set(words.entries["values"])


def test_all_that_is_computed_is_in_the_language_of_the_report():
    """No word of the English catalogue is left in a Korean report, short ones and those that are names aside."""
    korean = " ".join(texts_of(report("ko", lesions(lesion(is_cut=True)), warnings=(), caveats=())))
    english = {text for _, text in entries(words_of("en").entries) if len(text.strip()) > 3 and not gaps(text)}
    left = {text for text in english if re.search(rf"\b{re.escape(text)}\b", korean)}
    assert left <= {"presence", "size", "number"}  # as llm.questions names them


def test_a_german_number_has_a_comma_and_the_same_digits():
    english, german = words_of("en"), words_of("de")
    for value, digits in ((34.1256, 2), (0.98765, 3), (1234.5, 0)):
        assert german.number(value, digits) == english.number(value, digits).replace(".", ",")
    assert german.plain(0.05) == "0,05" and english.number(None, 2) == "–"


def test_texts_that_no_catalogue_knows_stay_as_they_are():
    assert words_of("de").known("reasons", "the package x is missing") == "the package x is missing"


# --- impression -----------------------------------------------------------------------------------------------------


def test_the_impression_is_two_sentences_of_what_was_measured_and_counted():
    first, second = report().impression
    assert first == (
        "The map shows one lesion of 34.13 ml above 0.5 in slices 60 to 80, 41 × 30 mm, on the right "
        "(frontal lobe, insula)."
    )
    assert second == (
        "The language model sees an anomaly in 18 of 21 slices and agrees with map and facts on presence in slice 77, "
        "not on place and size."
    )


def test_a_lesion_that_the_range_cuts_is_at_least_as_large():
    several = report(found=lesions(lesion(1, is_cut=True), lesion(2, volume_ml=1.0))).impression[0]
    assert several.startswith("The map shows 2 lesions of together at least 35.13 ml above 0.5")
    assert "mindestens 34,13 ml" in report("de", lesions(lesion(is_cut=True))).impression[0]
    assert "the largest at least 41 × 30 mm" in several
    uncut = report(found=lesions(lesion(1), lesion(2, volume_ml=1.0, is_cut=True))).impression[0]
    assert "at least 35.13 ml" in uncut and "the largest 41 × 30 mm" in uncut  # another one is cut


def test_nothing_found_is_no_all_clear():
    first, _ = report(found=lesions()).impression
    assert first == (
        "The map shows no lesion of 0.05 ml or more above 0.5 in slices 60 to 80; "
        "this does not mean that there is none."
    )


def test_regions_that_are_not_named_leave_no_empty_brackets():
    assert "(" not in report(found=lesions(lesion(regions=None))).impression[0]
    assert "(" not in report(found=lesions(lesion(regions=()))).impression[0]


# --- forms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_form_says_less_than_another(language):
    true = lesions(lesion(volume_ml=12.3456, diameter_mm=25.4, matched=True))
    key = report(language, true=true).key_slices[0].model_copy(update={"picture": None})
    given = report(language, lesions(lesion(is_cut=True, matched=True)), true, key_slices=(key,))
    for form, text in forms_of(given).items():
        for part in texts_of(given):
            shown = {"html": visible(part), "md": visible(part), "pdf": printable(part, ("dejavu", "nanum"))}[form]
            shown = shown.replace("\\", "") if form == "md" else shown
            assert squeezed(shown) in text, (form, part)


@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_are_the_same_in_every_language(language):
    true = lesions(lesion(volume_ml=12.3456, diameter_mm=25.4, matched=True))
    words = words_of(language)
    said_of = "\n".join(texts_of(report(language, lesions(lesion(is_cut=True, matched=True)), true)))
    volume = words("at_least", number=words.number(34.1256, 2))
    for number in (volume, words.number(12.3456, 2), "41 × 30", "25 × 30", "60–80", "30 / -11 / 20"):
        assert number in said_of
    assert words.number(0.87654, 3) in said_of and words.number(0.91, 3) in said_of


def test_words_of_the_language_model_are_quoted_and_never_translated():
    answer = "The anomaly is between 1 and 3 cm."
    for language in LANGUAGES:
        given = report(language)
        assert f"“{answer}”" in case_markdown(given) and f"<q>{answer}</q>" in case_html(given, {})
    assert squeezed(f"“{answer}”") in printed_text(given)


def test_hostile_names_and_answers_stay_text():
    given = report(case_id=HOSTILE, patient=HOSTILE, cohort=SPOKEN, warnings=(HOSTILE, SPOKEN), caveats=(SPOKEN,))
    html = case_html(given, {77: b"picture"})
    page = _Shown()
    page.feed(html)
    assert "script" not in page.elements and "onerror" not in re.sub("&lt;.*?&gt;", "", html)
    assert HOSTILE in page.text and "<script>alert(1)</script>" in page.text
    markdown = case_markdown(given)
    assert "\\<img" in markdown and "\\<script" in markdown and not re.search(r"(?<!\\)<", markdown)
    printed = printed_text(given)
    assert squeezed(HOSTILE) in printed and "<script>alert(1)</script>" in printed
    for text in (html, markdown, printed):
        assert "\u202e" not in text and "\x1b" not in text and "\\u202e" in text
    rows = [line for line in markdown.splitlines() if line.startswith("| This is a brain")]
    assert rows and all(len(re.findall(r"(?<!\\)\|", line)) == 7 for line in rows)  # no cell more


def test_a_character_that_no_font_has_is_printed_as_its_code_point():
    for language in ("en", "ko"):
        assert "한글-Ä-U+1F9E0" in printed_text(report(language, case_id="한글-Ä-🧠"))


def test_every_page_of_the_pdf_says_whose_report_it_is_and_that_it_is_no_medical_device():
    many = lesions(*(lesion(number, volume_ml=40.0 - number) for number in range(1, 31)))
    pages = pages_of(case_pdf(report(found=many), {}))
    assert len(pages) > 1
    for number, page in enumerate(pages, 1):
        assert "Report of case case-1" in page and "Not a medical device" in page and f"{number} / " in page


def test_answers_and_names_of_any_length_fit_on_paper():
    long = "Yes, " * 2000
    statements = said(long, evidence(disc(20, 15, 10), lesion()))
    key = report().key_slices[0].model_copy(update={"statements": statements})
    given = report(case_id="n" * 240, key_slices=(key,))
    printed = printed_text(given)
    assert printed.count("Yes,") == 2000 and "n" * 240 in printed


def test_a_phantom_is_called_one_before_anything_else():
    for language in LANGUAGES:
        sections = case_sections(report(language, phantom=True), words_of(language))
        assert sections[0].blocks[0].kind == "phantom" and sections[0].blocks[0].text == words_of(language)("phantom")
    assert "PHANTOM" not in " ".join(texts_of(report()))


def test_what_is_missing_is_said():
    given = report(
        first_slice=77,
        last_slice=77,
        screened=report().screened.model_copy(update={"slices": 1}),
        regions_not_named=OTHER_GRID,
        trained_on=True,
        finding="language model only",
    )
    said_of = " ".join(texts_of(given))
    for words in (
        "Only slice 77 was seen",
        "There is no segmentation to compare with.",
        f"No regions are named: {OTHER_GRID}.",
        "These weights learned from this patient",
        "Trained on gliomas.",
        "looks like a T1",
        "only the language model finds something",
        "p(yes) is near one half in 2 slices",
        "1 answer cannot be read",
        "These weights also answer place, number; ask with llm.questions=[presence,size,location,number]",
    ):
        assert words in said_of


def test_lesions_beyond_the_first_five_pictures_are_in_the_table_and_said_to_be():
    many = lesions(*(lesion(number, volume_ml=40.0 - number, widest_slice=60 + number) for number in range(1, 8)))
    key = report().key_slices[0]
    keys = tuple(
        key.model_copy(update={"slice_index": 60 + number, "picture": "x.png" if number <= SHOWN else None})
        for number in range(1, 8)
    )
    said_of = " ".join(texts_of(report(found=many, key_slices=keys)))
    assert "2 more key slices are not shown; the table has their lesions." in said_of
    assert "33.00" in said_of and "2 more key slices are in the JSON file only" in said_of


def test_the_key_image_of_a_slice_has_a_panel_more_where_there_is_a_mask():
    image = np.where(disc(45, 45, 40), 120, 0).astype(np.uint8)
    row = dict.fromkeys(("split", "label", "tumour_pixels", "anomaly_score", "p_yes", "verdict", "answer"))
    row |= dict.fromkeys(("answer_parsed", "location", "location_true", "location_anatomical"))
    row |= {"case_id": "c", "slice_index": 77}
    sizes = []
    for mask in (None, disc(20, 15, 8), np.zeros(SHAPE, bool)):
        png = key_image(GalleryItem.of(row, image, mask, disc(20, 15, 10) * 0.9), (1.0, 1.0, 1.0))
        assert png.startswith(b"\x89PNG")
        sizes.append(int.from_bytes(png[16:20]))
    assert sizes[0] < sizes[1] == sizes[2]
    black = GalleryItem.of(row, np.zeros(SHAPE, np.uint8), None, np.zeros(SHAPE))
    assert key_image(black, (1.0, 2.0, 1.0)).startswith(b"\x89PNG")


# --- schema ---------------------------------------------------------------------------------------------------------


def test_the_published_schema_is_that_of_the_model():
    stored = (files("medad_core.report") / "case_report.schema.json").read_text(encoding="utf-8")
    assert stored == schema_text(), "make it again: medad_core.report.case.schema_text()"
    schema = json.loads(stored)
    assert schema["properties"]["schema_version"]["const"] == "1.0" and schema["additionalProperties"] is False


def test_lesions_have_the_columns_of_the_table():
    assert list(LesionFacts.model_fields) == [name for name in LESIONS.names if name not in ("case_id", "source")]


def test_json_gives_the_report_back_and_refuses_what_it_does_not_know():
    given = report(case_id=HOSTILE)
    text = given.model_dump_json()
    assert CaseReport.model_validate_json(text) == given
    with pytest.raises(ValidationError, match="diagnosis"):
        CaseReport.model_validate_json(json.dumps(json.loads(text) | {"diagnosis": "glioma"}))
    with pytest.raises(ValidationError, match="frozen"):
        given.case_id = "another"

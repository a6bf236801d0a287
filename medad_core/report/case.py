"""What a report says of one case: the model that every form of it (JSON, Markdown, HTML, PDF) is made of.

One decision: a report has no number of its own. Fields that are named as columns of `cases.parquet`, `lesions.parquet`
and `predictions.parquet` are those columns, unrounded; the forms round them alike. What the language model says stands
as it was spoken, and beside each statement what map, facts and mask say of the same thing. Nothing is mended. The JSON
Schema of the model is `case_report.schema.json`.
"""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from medad_core.config import Language

SCHEMA_VERSION = "1.0"
SHOWN = 5  # key slices that a report has pictures of; the table has every lesion

Source = Literal["map", "facts", "mask"]
Subject = Literal["presence", "location", "side", "size", "number", "region"]
SAME, NEIGHBOUR, OTHER = "same", "neighbour", "other"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LesionFacts(_Part):
    """A lesion of the map, or of the mask: a row of `lesions.parquet`. Lengths are mm, slices are slice indices."""

    lesion: int
    """From 1, by falling volume."""
    volume_ml: float
    """At least this where `is_cut`."""
    first_slice: int
    last_slice: int
    diameter_mm: float
    """The longest axial diameter, in `widest_slice`."""
    perpendicular_mm: float
    widest_slice: int
    """The key slice of the lesion."""
    slice: float
    """Slice, row and column of the centroid, in the pictures."""
    row: float
    column: float
    x_mm: float | None
    """The centroid in RAS+; null where nobody noted where the pictures lie."""
    y_mm: float | None
    z_mm: float | None
    side: str
    right: float
    """Share of its volume on the patient's right."""
    crosses_midline: bool
    is_cut: bool
    """The range of slices ends within it."""
    regions: tuple[str, ...] | None
    """Null where regions are not named; `regions_not_named` of the report says why."""
    matched: bool | None
    """Whether the other source, mask or map, shows something there too; null without a mask."""


class Lesions(_Part):
    """All lesions that map or mask show: a row of `cases.parquet`, and those of `lesions.parquet`."""

    lesions: int
    volume_ml: float
    longest_mm: float | None
    side: str | None
    regions: tuple[str, ...] | None
    is_cut: bool
    each: tuple[LesionFacts, ...]


class Comparison(_Part):
    """What a source says of the subject of a statement. `neighbour`: a cell beside the one that is named."""

    source: Source
    value: str
    """As the questions word it; several cells are separated by `, `."""
    match: Literal["same", "neighbour", "other"]


class Statement(_Part):
    """One thing that the language model says of a slice. `answer` is as spoken, whatever it is."""

    question: str
    """As `questions.parquet` names it: `presence`, `side`, `region: left half`."""
    subject: Subject
    """What is stated. The sentence that answers `presence` also states a location."""
    asked: str
    answer: str
    value: str | None
    """What the answer means by the closed list of sentences; null where it is none of them."""
    compared: tuple[Comparison, ...]
    """With the map of the slice above the threshold, and with the lesions of `lesions.parquet` in this slice."""
    agrees: bool | None
    """Whether it is the same as all that it was compared with; null where there is nothing to compare."""
    with_mask: Comparison | None
    """Null in a case without mask. It does not count in `agrees`."""


class KeySlice(_Part):
    """The slice where lesions of the map are widest; in a case without lesions the one with the highest score."""

    slice_index: int
    lesions: tuple[int, ...]
    """Numbers of the map's lesions that are widest here."""
    anomaly_score: float | None
    p_yes: float | None
    statements: tuple[Statement, ...]
    picture: str | None
    """File with the key image, beside the report; null for slices after the first five."""


class Screened(_Part):
    """What the language model answered in all slices of the case."""

    slices: int
    slices_yes: int
    unreadable: int
    """Answers that are none of the sentences."""
    near_half: int
    """Slices whose p(yes) is from 0.4 to 0.6."""
    highest_p_yes: float | None
    highest_score: float | None


class Named(_Part):
    """A model, or a package: what it is for, and its name or version."""

    role: str
    name: str


class CaseReport(_Part):
    """The report of one case. For research; not a medical device."""

    schema_version: Literal["1.0"] = SCHEMA_VERSION
    language: Language
    """Of `impression` and of all other forms. Names, warnings, caveats and answers stay as they are."""
    cohort: str
    case_id: str
    patient: str
    split: str
    phantom: bool
    """True for a picture that a program drew: there is no patient."""
    first_slice: int
    last_slice: int
    threshold: float
    """Of the map."""
    threshold_policy: Literal["fixed"]
    """fixed: the same for all cases of the run, from `evaluate.map_threshold`."""
    smallest_ml: float
    """Smaller ones are no lesions."""
    impression: tuple[str, str]
    """Two computed sentences. No diagnosis."""
    finding: str
    """As in `worklist.csv`: who finds something."""
    look_at: int
    """As in `worklist.csv`: the slice to look at first."""
    found: Lesions
    """Of the map."""
    true: Lesions | None
    """Of the mask; null in a case without mask."""
    regions_not_named: str | None
    screened: Screened
    key_slices: tuple[KeySlice, ...]
    questions: tuple[str, ...]
    """What was asked of every slice."""
    further_questions: tuple[str, ...]
    """What the weights have learned to answer, and was not asked."""
    warnings: tuple[str, ...]
    """What the content of the volume makes doubtful; `warnings.csv`."""
    caveats: tuple[str, ...]
    """What a reader must know of the weights, in the words of their card."""
    trained_on: bool | None
    """Whether the weights learned from this patient, which makes all numbers too good; null where medad cannot tell."""
    models: tuple[Named, ...]
    versions: tuple[Named, ...]
    """Packages that the run was made with."""
    written_by: str
    """The version of medad that wrote this report."""
    fingerprint: str
    """Of the answers: the hash of models, weights and settings that they were made with."""
    inputs_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Hash of all that the report is made of. While it is the same, a report is not written again."""


def schema_text() -> str:
    """The JSON Schema of `CaseReport`, as `case_report.schema.json` has it."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **CaseReport.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"

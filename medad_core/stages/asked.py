"""Answers to several questions beside the truth of the masks."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa

from medad_core.data.findings import find
from medad_core.llm.questions import PRESENCE, Question
from medad_core.stages.rows import bits_of


def presence_rows(answers: pa.Table) -> pa.Table:
    """The rows of answers to the question that every run asks, with the columns of ANSWERS."""
    if "question" not in answers.column_names:
        return answers
    asked = pa.array([name == PRESENCE for name in answers["question"].to_pylist()], pa.bool_())
    return answers.filter(asked).drop_columns(["question", "value"])


def question_rows(slices: pa.Table, answers: pa.Table, patient: str) -> pd.DataFrame:
    """Rows with the columns of QUESTIONS for one case of a run that asks several questions."""
    questions: dict[str, Question] = {}
    truth: dict[tuple[int, str], str | None] = {}
    frame = answers.select(["case_id", "slice_index", "question", "answer", "value"]).to_pandas()
    for name in frame["question"].unique():
        family, _, place = name.partition(": ")
        questions[name] = Question(family, place or None)
    for row in slices.drop_columns(["image"]).to_pylist():
        mask = bits_of(row, "mask")
        if mask is not None:
            finding = find(mask, bits_of(row, "brain"), row["spacing_mm"][0] * row["spacing_mm"][1])
            truth |= {(row["slice_index"], name): question.truth(finding) for name, question in questions.items()}
    keys = zip(frame["slice_index"], frame["question"], strict=True)
    split = slices["split"][0].as_py() if len(slices) else None
    return frame.assign(patient=patient, split=split, value_true=[truth.get(key) for key in keys])

"""The results of a run, by case, as reports of cases need them.

One decision: what `evaluate` wrote is read and nothing is computed again, so a report cannot have another number than
the tables. A run without results is refused before any report is made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from medad_core.errors import CaseError, StoreError, UsageError
from medad_core.media import read_csv
from medad_core.run import warnings
from medad_core.run.rejected import rejected_cases
from medad_core.run.run import Run
from medad_core.stages.evaluate import QUESTIONS_FILE
from medad_core.stages.facts import CASES_FILE, LESIONS_FILE
from medad_core.stages.pictures import PREDICTIONS_FILE
from medad_core.store import QUESTIONS, join, read_table
from medad_core.store.files import read_bytes

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class CaseResults:
    """The rows of one case: of `cases.parquet`, `lesions.parquet` (map and mask), `predictions.parquet` as a frame and
    as rows by slice, `questions.parquet` (empty where one question is asked), and its warnings."""

    case: Mapping[str, Any]
    lesions: Mapping[str, Rows]
    frame: pd.DataFrame
    predictions: Mapping[int, Mapping[str, Any]]
    questions: Rows
    warnings: tuple[str, ...]


class RunResults:
    """The results of a run whose stages are finished."""

    def __init__(self, run: Run) -> None:
        """Read them. Raises StoreError where a stage is not finished, or there are no results."""
        run.stage("answers").require_finished()
        self.run = run
        self.cases = {row["case_id"]: row for row in self.table(CASES_FILE).to_pylist()}
        self._lesions = self.table(LESIONS_FILE)
        self.predictions = self.table(PREDICTIONS_FILE)
        several = "questions" in run.stage("answers").plan().fingerprint
        self._questions = self.table(QUESTIONS_FILE) if several else QUESTIONS.empty_table()
        self._warnings = defaultdict(list)
        for row in read_csv((read_bytes(join(run.uri, warnings.NAME)) or b"").decode()):
            self._warnings[row["case_id"]].append(row["warning"])

    def of(self, case_id: str) -> CaseResults:
        """The rows of one case.

        Raises CaseError where the run rejected it, UsageError where the run has no such case.
        """
        if case_id not in self.cases:
            raise self._absent(case_id)
        by_source: dict[str, Rows] = {"map": [], "mask": []}
        for row in _rows_of(self._lesions, case_id).to_pylist():
            by_source[row["source"]].append(row)
        predictions = _rows_of(self.predictions, case_id)
        return CaseResults(
            case=self.cases[case_id],
            lesions=by_source,
            frame=predictions.to_pandas(),
            predictions={row["slice_index"]: row for row in predictions.to_pylist()},
            questions=_rows_of(self._questions, case_id).to_pylist(),
            warnings=tuple(self._warnings[case_id]),
        )

    def rejected(self) -> dict[str, str]:
        """The cases that the run could not use, and why."""
        return {
            case_id: f"rejected at the stage {stage}: {reason}"
            for case_id, stage, reason in rejected_cases(self.run.stages.values())
            if case_id not in self.cases
        }

    def _absent(self, case_id: str) -> CaseError | UsageError:
        reason = self.rejected().get(case_id)
        if reason is not None:
            return CaseError(case_id, reason)
        return UsageError(f"{case_id}: the run has no such case; {join(self.run.uri, 'worklist.csv')} lists its cases")

    def table(self, name: str) -> pa.Table:
        """A file of the results. Raises StoreError that says how to make it again."""
        uri = join(self.run.uri, name)
        try:
            return read_table(uri)
        except StoreError as error:
            raise StoreError(f"{error}; `medad evaluate {self.run.uri}` makes it again") from error


def _rows_of(table: pa.Table, case_id: str) -> pa.Table:
    return table.filter(pc.equal(table["case_id"], case_id))

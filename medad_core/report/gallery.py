"""Which slices the page shows.

One decision: every kind of outcome gets an equal share, so that a gallery cannot flatter. The mistakes are what a reader
needs to see, and among thousands of right answers a random choice would show none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

OUTCOMES = {
    "false negative": "Missed: tumour, answered no",
    "false positive": "False alarm: no tumour, answered yes",
    "true positive": "Found: tumour, answered yes",
    "true negative": "Cleared: no tumour, answered no",
    "yes": "Answered yes, no expert mask",
    "no": "Answered no, no expert mask",
    "unread": "Answer could not be read",
}


@dataclass(frozen=True)
class GalleryItem:
    """One slice to show: `image` uint8 (H, W) in display orientation, `mask` bool (H, W) or None, `anomaly_map` float (H, W).

    The other fields are those of its row of predictions; None where that is null.
    """

    case_id: str
    slice_index: int
    image: np.ndarray
    mask: np.ndarray | None
    anomaly_map: np.ndarray
    split: str | None
    label: int | None
    tumour_pixels: int | None
    anomaly_score: float | None
    p_yes: float | None
    verdict: str | None
    answer: str | None
    answer_parsed: bool
    location: str | None
    location_true: str | None
    location_anatomical: str | None

    @classmethod
    def of(cls, row: Mapping[str, Any], image: np.ndarray, mask: np.ndarray | None, anomaly_map: np.ndarray) -> GalleryItem:
        """From a row of predictions (a mapping or a pandas Series) and its pictures."""
        return cls(
            case_id=str(row["case_id"]),
            slice_index=int(row["slice_index"]),
            image=image,
            mask=mask,
            anomaly_map=anomaly_map,
            split=_or_none(row["split"], str),
            label=_or_none(row["label"], int),
            tumour_pixels=_or_none(row["tumour_pixels"], int),
            anomaly_score=_or_none(row["anomaly_score"], float),
            p_yes=_or_none(row["p_yes"], float),
            verdict=_or_none(row["verdict"], str),
            answer=_or_none(row["answer"], str),
            answer_parsed=bool(_or_none(row["answer_parsed"], bool)),
            location=_or_none(row["location"], str),
            location_true=_or_none(row["location_true"], str),
            location_anatomical=_or_none(row["location_anatomical"], str),
        )

    @property
    def outcome(self) -> str:
        """Key of `OUTCOMES`."""
        return _outcome(self.label, self.verdict if self.answer_parsed else None)


def choose_gallery(predictions: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    """Up to `n` rows of `predictions`: equal shares of the outcomes, spread over patients, then over a patient's slices.

    The choice depends on the rows and the seed, not on the order of the rows. Returned grouped by outcome in the order of
    `OUTCOMES`, then by case and slice.
    """
    frame = predictions.sort_values(["case_id", "slice_index"], kind="stable", ignore_index=True)
    frame = frame.iloc[np.random.default_rng(seed).permutation(len(frame))]
    outcomes = pd.Series([_row_outcome(row) for _, row in frame.iterrows()], index=frame.index, dtype=object)
    waiting = {name: list(frame.index[outcomes == name]) for name in OUTCOMES}
    chosen: list[int] = []
    seen: Counter[str] = Counter()
    while len(chosen) < n and any(waiting.values()):
        for rows in (rows for rows in waiting.values() if rows and len(chosen) < n):
            best = min(rows, key=lambda row: (seen[frame.at[row, "case_id"]], _closeness(frame, row, chosen)))
            rows.remove(best)
            chosen.append(best)
            seen[frame.at[best, "case_id"]] += 1
    rank = {name: place for place, name in enumerate(OUTCOMES)}
    return frame.loc[sorted(chosen, key=lambda row: (rank[outcomes[row]], row))]


def _closeness(frame: pd.DataFrame, row: int, chosen: list[int]) -> float:
    """Minus the distance, in slices, to the nearest slice already chosen of the same case."""
    case, index = frame.at[row, "case_id"], frame.at[row, "slice_index"]
    return -min((abs(index - frame.at[c, "slice_index"]) for c in chosen if frame.at[c, "case_id"] == case), default=0)


def _row_outcome(row: pd.Series) -> str:
    parsed = bool(_or_none(row["answer_parsed"], bool))
    return _outcome(_or_none(row["label"], int), _or_none(row["verdict"], str) if parsed else None)


def _outcome(label: int | None, verdict: str | None) -> str:
    if verdict not in ("yes", "no"):
        return "unread"
    if label is None:
        return verdict
    return f"{'true' if (verdict == 'yes') == bool(label) else 'false'} {'positive' if verdict == 'yes' else 'negative'}"


def _or_none(value: Any, kind: type) -> Any:
    return None if pd.isna(value) else kind(value)

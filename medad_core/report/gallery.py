"""Which slices the page shows.

One decision: every kind of outcome gets an equal share, so that a gallery cannot flatter. The mistakes are what a
reader needs to see, and among thousands of right answers a random choice would show none.
"""

from __future__ import annotations

from collections import defaultdict
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
    """One slice to show.

    `image` is uint8 (H, W) in display orientation, `mask` bool (H, W) or None, `anomaly_map` float (H, W) in [0, 1].
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
    def of(
        cls, row: Mapping[str, Any], image: np.ndarray, mask: np.ndarray | None, anomaly_map: np.ndarray
    ) -> GalleryItem:
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
    """Up to `n` rows of `predictions`: equal shares of the outcomes, spread over cases, then over a case's slices.

    The choice depends on the rows and the seed, not on the order of the rows. Returned grouped by outcome in the order
    of `OUTCOMES`, then by case and slice.
    """
    frame = predictions.sort_values(["case_id", "slice_index"], kind="stable", ignore_index=True)
    shuffled = np.random.default_rng(seed).permutation(len(frame)).tolist()
    cases = frame["case_id"].tolist()
    slices = frame["slice_index"].tolist()
    outcomes = _outcomes(frame)
    # Outcome to case to its rows, all in shuffled order: the first of equals is taken.
    left: dict[str, dict[str, list[int]]] = {name: {} for name in OUTCOMES}
    for row in shuffled:
        left[outcomes[row]].setdefault(cases[row], []).append(row)
    chosen: list[int] = []
    taken: dict[str, list[int]] = defaultdict(list)  # slices that were chosen, by case
    while len(chosen) < n and any(left.values()):
        for rows_of in left.values():
            if not rows_of or len(chosen) == n:
                continue
            case = min(rows_of, key=lambda name: len(taken[name]))
            row = _farthest(rows_of[case], slices, taken[case])
            rows_of[case].remove(row)
            if not rows_of[case]:
                del rows_of[case]
            chosen.append(row)
            taken[case].append(slices[row])
    rank = {name: place for place, name in enumerate(OUTCOMES)}
    return frame.loc[sorted(chosen, key=lambda row: (rank[outcomes[row]], row))]


def _farthest(rows: list[int], slices: list[int], taken: list[int]) -> int:
    """The row whose slice is farthest from those that are taken."""

    def distance(row: int) -> int:
        return min((abs(slices[row] - at) for at in taken), default=0)

    return max(rows, key=distance)


def _outcomes(frame: pd.DataFrame) -> list[str]:
    """Key of `OUTCOMES` for each row."""
    readable = frame["answer_parsed"].fillna(False).astype(bool)
    verdicts = frame["verdict"].where(readable)
    pairs = zip(frame["label"], verdicts, strict=True)
    return [_outcome(_or_none(label, int), _or_none(verdict, str)) for label, verdict in pairs]


def _outcome(label: int | None, verdict: str | None) -> str:
    if verdict not in ("yes", "no"):
        return "unread"
    if label is None:
        return verdict
    sign = "positive" if verdict == "yes" else "negative"
    right = (verdict == "yes") == bool(label)
    return f"true {sign}" if right else f"false {sign}"


def _or_none(value: Any, kind: type) -> Any:
    return None if pd.isna(value) else kind(value)

"""The facts of a case: the lesions of its map above the threshold, and those of its segmentation, measured alike.

One decision: whatever could be taken for a statement about the patient says how far it reaches. A lesion that the range
of slices cuts is "at least" as large; regions are named on the grid of SRI24 only, and elsewhere the reason is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from medad_core.data.findings import middle_column, side_of
from medad_core.data.place import Place
from medad_core.errors import UsageError
from medad_core.facts.lesions import BoolArray, Grid, Lesion, label_lesions, measure_lesions
from medad_core.facts.regions import REGIONS, atlas, named_regions, region_shares
from medad_core.store import CASES, LESIONS

OTHER_GRID = "its grid is not that of SRI24"
PHANTOM = "it is a generated phantom"
NO_PLACE = "an earlier version made its slices and did not note where they lie; screen it with another --out"


@dataclass(frozen=True)
class Placed:
    """A lesion, the regions it lies in (None where regions are not named), and whether the other source has it too.

    `matched` is None in a case without segmentation.
    """

    lesion: Lesion
    regions: tuple[str, ...] | None
    matched: bool | None


@dataclass(frozen=True)
class Lesions:
    """All lesions that one source, a map or a mask, shows in a case, the largest first."""

    placed: tuple[Placed, ...]

    @property
    def volume_ml(self) -> float:
        """Of all lesions together."""
        return sum((one.lesion.volume_ml for one in self.placed), 0.0)

    @property
    def longest_mm(self) -> float | None:
        """The longest axial diameter of any lesion; None where there is none."""
        return max((one.lesion.diameter_mm for one in self.placed), default=None)

    @property
    def side(self) -> str | None:
        """The side that at least nine tenths of their volume lie on, else "both"; None where there is no lesion."""
        if not self.placed:
            return None
        right = sum(one.lesion.right * one.lesion.volume_ml for one in self.placed)
        return side_of(right / self.volume_ml)

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions of any lesion; none where they are not named."""
        held = {region for one in self.placed for region in one.regions or ()}
        return tuple(region for region in REGIONS if region in held)

    @property
    def is_cut(self) -> bool:
        """Whether the range of slices ends within a lesion."""
        return any(one.lesion.is_cut for one in self.placed)

    @property
    def matched(self) -> int:
        """How many of them the other source has too."""
        return sum(bool(one.matched) for one in self.placed)


@dataclass(frozen=True)
class CaseFacts:
    """The facts of a case. `found` are the lesions of the map, `true` those of the mask, None where there is no mask.

    `unnamed` says why no regions are named, and is empty where they are. `smallest_ml` is that of a lesion of either.
    """

    case_id: str
    grid: Grid
    slices: int
    threshold: float
    smallest_ml: float
    found: Lesions
    true: Lesions | None
    unnamed: str


def case_facts(
    case_id: str,
    found: BoolArray,
    masks: BoolArray | None,
    brain: BoolArray,
    grid: Grid,
    threshold: float,
    smallest_ml: float,
    phantom: bool = False,
) -> CaseFacts:
    """The facts of a case from its maps above `threshold`, its masks and its brain, bool (N, H, W) each.

    No regions are named in a `phantom`, whose anatomy is drawn.
    """
    middle = np.array([middle_column(one) for one in brain])
    unnamed = PHANTOM if phantom else _why_unnamed(grid.place)
    labels = label_lesions(found, grid, smallest_ml)
    true_labels = None if masks is None else label_lesions(masks, grid, smallest_ml)
    named = not unnamed
    return CaseFacts(
        case_id=case_id,
        grid=grid,
        slices=len(found),
        threshold=threshold,
        smallest_ml=smallest_ml,
        found=_placed(labels, middle, grid, named, masks),
        true=None if true_labels is None else _placed(true_labels, middle, grid, named, labels > 0),
        unnamed=unnamed,
    )


def _why_unnamed(place: Place | None) -> str:
    if place is None:
        return NO_PLACE
    if not place.sri24:
        return OTHER_GRID
    try:
        atlas()
    except UsageError as error:
        return str(error)
    return ""


def _placed(labels: np.ndarray, middle: np.ndarray, grid: Grid, named: bool, other: BoolArray | None) -> Lesions:
    """The lesions of a labelled volume. `other` (N, H, W) is what the other source shows."""
    placed = []
    for lesion, voxels in measure_lesions(labels, middle, grid):
        regions = named_regions(region_shares(voxels + np.array([grid.first_slice, 0, 0]))) if named else None
        matched = None if other is None else bool(other[tuple(voxels.T)].any())
        placed.append(Placed(lesion, regions, matched))
    return Lesions(tuple(placed))


def case_table(facts: Sequence[CaseFacts], patient: Mapping[str, str], split: Mapping[str, str]) -> pa.Table:
    """One row a case, with the columns of CASES."""
    return pa.Table.from_pylist([_case_row(one, patient, split) for one in facts], schema=CASES)


def _case_row(facts: CaseFacts, patient: Mapping[str, str], split: Mapping[str, str]) -> dict:
    row = {
        "case_id": facts.case_id,
        "patient": patient[facts.case_id],
        "split": split[facts.case_id],
        "first_slice": facts.grid.first_slice,
        "last_slice": facts.grid.first_slice + facts.slices - 1,
        "threshold": facts.threshold,
        "smallest_ml": facts.smallest_ml,
        "regions_not_named": facts.unnamed or None,
        **_summary(facts.found, "", facts.unnamed),
    }
    return row | (_summary(facts.true, "_true", facts.unnamed) if facts.true is not None else {})


def _summary(lesions: Lesions, suffix: str, unnamed: str) -> dict:
    values = {
        "lesions": len(lesions.placed),
        "volume_ml": lesions.volume_ml,
        "longest_mm": lesions.longest_mm,
        "side": lesions.side,
        "regions": None if unnamed else lesions.regions,
        "is_cut": lesions.is_cut,
    }
    return {name + suffix: value for name, value in values.items()}


def lesion_table(facts: Sequence[CaseFacts]) -> pa.Table:
    """One row a lesion, with the columns of LESIONS; those of the map first, then those of the mask."""
    rows = []
    for one in facts:
        for source, lesions in (("map", one.found), ("mask", one.true)):
            for number, placed in enumerate(lesions.placed if lesions is not None else (), 1):
                rows.append({"case_id": one.case_id, "source": source, "lesion": number, **_lesion_row(placed)})
    return pa.Table.from_pylist(rows, schema=LESIONS)


def _lesion_row(placed: Placed) -> dict:
    lesion = placed.lesion
    position = lesion.centroid_ras or (None, None, None)
    return {
        "volume_ml": lesion.volume_ml,
        "first_slice": lesion.first_slice,
        "last_slice": lesion.last_slice,
        "diameter_mm": lesion.diameter_mm,
        "perpendicular_mm": lesion.perpendicular_mm,
        "widest_slice": lesion.widest_slice,
        **dict(zip(("slice", "row", "column"), lesion.centroid, strict=True)),
        **dict(zip(("x_mm", "y_mm", "z_mm"), position, strict=True)),
        "side": lesion.side,
        "right": lesion.right,
        "crosses_midline": lesion.crosses_midline,
        "is_cut": lesion.is_cut,
        "regions": placed.regions,
        "matched": placed.matched,
    }

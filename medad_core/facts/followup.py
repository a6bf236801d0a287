"""What the maps of two examinations of a patient show: which lesion is where the other has one, and how much of it.

One decision: voxels are compared only where they are the same places in the patient, as far as headers and brains can
tell: on one grid, with brains that lie on each other, in the slices that both examinations have. Nothing is registered.
A change is of what maps show above the threshold, and says nothing of a disease.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from medad_core.data.findings import middle_column
from medad_core.data.place import Place
from medad_core.facts.case import NO_PLACE, Lesions, Placed
from medad_core.facts.lesions import BoolArray, Grid, label_lesions, measure_lesions

LARGEST_OFFSET_MM = 0.1  # of a corner of the pictures; headers store places to about 1e-4 mm
# Of 12 brains in slices 60 to 100: one and itself 2 mm beside it have 0.98, 5 mm 0.95 to 0.96, 10 mm 0.90 to 0.93; two
# patients 0.94 (0.88 to 0.97).
LEAST_BRAIN_DICE = 0.95
LASTING, NEW, VANISHED, TOO_SMALL = "lasting", "new", "vanished", "too small in the other"
Labels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Seen:
    """An examination: its map `above` the threshold and its brain, bool (N, H, W) each, and where they lie."""

    above: BoolArray
    brain: BoolArray
    grid: Grid

    @property
    def slices(self) -> range:
        """The slice indices of its pictures."""
        return range(self.grid.first_slice, self.grid.first_slice + len(self.above))

    def within(self, slices: range) -> Seen:
        """The same in some of its slices."""
        cut = slice(slices.start - self.slices.start, slices.stop - self.slices.start)
        return Seen(self.above[cut], self.brain[cut], replace(self.grid, first_slice=slices.start))


@dataclass(frozen=True)
class Pair:
    """A lesion of the earlier map and the one of the later that shares voxels with it; a number is None where there is
    none.

    Numbers are those of `lesions.parquet`, volumes those in the slices compared. `state` is LASTING, NEW, VANISHED, or
    TOO_SMALL where the other map shows something there that is too small for a lesion.
    """

    earlier: int | None
    later: int | None
    state: str
    overlap_ml: float
    volume_ml_earlier: float | None
    volume_ml_later: float | None


@dataclass(frozen=True)
class Comparison:
    """Two examinations in the slices that both have: the lesions of each, and how these belong together.

    `brain_dice` is the Dice of both brains in these slices.
    """

    slices: range
    brain_dice: float
    earlier: Lesions
    later: Lesions
    pairs: tuple[Pair, ...]

    def count(self, state: str) -> int:
        """Lesions of one state; a lasting one counts as one lesion of the earlier map, whatever became of it."""
        if state == LASTING:
            return len({pair.earlier for pair in self.pairs if pair.state == LASTING})
        return sum(pair.state == state for pair in self.pairs)

    @property
    def merged(self) -> int:
        """Lesions of the later map where the earlier has several."""
        return _several([pair.later for pair in self.pairs if pair.state == LASTING])

    @property
    def split(self) -> int:
        """Lesions of the earlier map where the later has several."""
        return _several([pair.earlier for pair in self.pairs if pair.state == LASTING])


def why_apart(earlier: Seen, later: Seen) -> str:
    """Why voxels of two examinations cannot be compared; empty where they can."""
    places = earlier.grid.place, later.grid.place
    if places[0] is None or places[1] is None:
        return NO_PLACE
    sizes = [(one.slices, *seen.above.shape[1:]) for one, seen in zip(places, (earlier, later), strict=True)]
    if sizes[0] != sizes[1]:
        return f"their grids differ: {_by(sizes[0])} and {_by(sizes[1])} voxels"
    offset = _largest_offset(places[0], places[1], sizes[0])
    if offset > LARGEST_OFFSET_MM:
        return f"their grids lie up to {offset:.1f} mm apart"
    common = _common(earlier, later)
    if not common:
        return f"no slice was screened in both: {_span(earlier.slices)} and {_span(later.slices)}"
    dice = _brain_dice(earlier.within(common), later.within(common))
    if dice < LEAST_BRAIN_DICE:
        return f"their brains do not lie on each other (Dice {dice:.2f}); register the later volume to the earlier"
    return ""


def compare(earlier: Seen, later: Seen, smallest_ml: float) -> Comparison:
    """Two examinations that `why_apart` has nothing against. A lesion has at least `smallest_ml`.

    Lesions belong together if they share a voxel. A lesion with less than `smallest_ml` in the slices that both have is
    left out.
    """
    common = _common(earlier, later)
    labels = [_labels(seen, common, smallest_ml) for seen in (earlier, later)]
    both = earlier.within(common), later.within(common)
    return Comparison(
        slices=common,
        brain_dice=_brain_dice(*both),
        earlier=_lesions(labels[0], both[0]),
        later=_lesions(labels[1], both[1]),
        pairs=tuple(_pairs(labels, both)),
    )


def _common(earlier: Seen, later: Seen) -> range:
    one, other = earlier.slices, later.slices
    return range(max(one.start, other.start), min(one.stop, other.stop))


def _largest_offset(one: Place, other: Place, size: tuple[int, ...]) -> float:
    """How far apart, in mm, the corners of two grids of `size` (slices, rows, columns) lie at most."""
    corners = np.array(np.meshgrid(*([0, length - 1] for length in size))).reshape(3, -1)
    moved = (one.matrix - other.matrix) @ np.vstack([corners, np.ones(corners.shape[1])])
    return float(np.linalg.norm(moved[:3], axis=0).max())


def _brain_dice(one: Seen, other: Seen) -> float:
    total = int(one.brain.sum() + other.brain.sum())
    return 2 * int((one.brain & other.brain).sum()) / total if total else 0.0


def _labels(seen: Seen, common: range, smallest_ml: float) -> Labels:
    """Lesions in the common slices, with the numbers that they have among all slices."""
    whole = label_lesions(seen.above, seen.grid, smallest_ml)
    labels = whole[common.start - seen.slices.start : common.stop - seen.slices.start].copy()
    voxels = np.bincount(labels.ravel())
    labels[(voxels * seen.grid.voxel_ml < smallest_ml - 1e-12)[labels]] = 0
    return labels


def _lesions(labels: Labels, seen: Seen) -> Lesions:
    numbers = np.unique(labels[labels > 0])
    counted = np.where(labels > 0, np.searchsorted(numbers, labels) + 1, 0)
    middle = np.array([middle_column(one) for one in seen.brain])
    measured = measure_lesions(counted, middle, seen.grid)
    return Lesions(tuple(Placed(lesion, None, None) for lesion, _ in measured))


def _pairs(labels: list[Labels], both: tuple[Seen, Seen]) -> Iterator[Pair]:
    voxel_ml = both[0].grid.voxel_ml
    before, after = (_volumes(one, voxel_ml) for one in labels)
    shared = (labels[0] > 0) & (labels[1] > 0)
    touching, voxels = np.unique([one[shared] for one in labels], axis=1, return_counts=True)
    for (one, other), count in zip(touching.T.tolist(), voxels.tolist(), strict=True):
        yield Pair(one, other, LASTING, count * voxel_ml, before[one], after[other])
    for one in sorted(before.keys() - set(touching[0].tolist())):
        is_there = both[1].above[labels[0] == one].any()
        yield Pair(one, None, TOO_SMALL if is_there else VANISHED, 0.0, before[one], None)
    for other in sorted(after.keys() - set(touching[1].tolist())):
        was_there = both[0].above[labels[1] == other].any()
        yield Pair(None, other, TOO_SMALL if was_there else NEW, 0.0, None, after[other])


def _volumes(labels: Labels, voxel_ml: float) -> dict[int, float]:
    numbers, voxels = np.unique(labels[labels > 0], return_counts=True)
    return dict(zip(numbers.tolist(), (voxels * voxel_ml).tolist(), strict=True))


def _several(numbers: list[int | None]) -> int:
    return sum(numbers.count(number) > 1 for number in set(numbers))


def _by(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


def _span(slices: range) -> str:
    return f"{slices.start} to {slices.stop - 1}"

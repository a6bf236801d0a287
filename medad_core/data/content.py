"""What a volume and its mask really are, judged by their voxels and never by their names.

One decision: every check is one number against one limit, from a few axial slices that are read anyway. It refuses
only where no real volume came near the limit; where it could be wrong it warns. `README.md` beside this file has the
formulas, the limits and how often they err.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medad_core.data.content_mask import measure_mask
from medad_core.data.content_volume import measure_outline, measure_texture, scale_by_tissue

SLICES = 5  # what the limits were measured with; more slices change the numbers little and cost more
_LEAST_BRAIN_MM2 = 3000.0  # slices with less brain, such as the vertex, say nothing
_LEAST_MASK_PIXELS = 20


@dataclass(frozen=True)
class Check:
    """One number about a volume or a mask, the limit that it is held against, and what follows.

    `value` is NaN where it cannot be measured, which is a warning. `reason` is empty where `verdict` is "use", else a
    sentence with the number and the way out.
    """

    name: str
    value: float
    limit: float
    verdict: Literal["use", "warn", "refuse"]
    reason: str


@dataclass(frozen=True)
class _Rule:
    """Limits of a statistic. At `warn` or beyond it warns, at `refuse` or beyond it refuses; `sign` -1 is downwards."""

    warn: float
    reason: str  # of a warning or refusal; {value} and {limit} are filled in
    refuse: float = math.inf
    sign: int = 1


_RULES = {
    "skull": _Rule(
        0.35,
        "a dark ring lies under a brighter one all around (depth {value:.2f}, limit {limit:.2f}), "
        "as in a head with its skull; give a skull-stripped volume",
        refuse=0.50,
    ),
    "cut_off": _Rule(
        0.25,
        "the brain ends in a straight line that is {value:.2f} of its width (limit {limit:.2f}), so a part of it is "
        "missing; give the whole brain, or look at the pictures first",
    ),
    "noise": _Rule(
        0.12,
        "the noise is {value:.2f} of the tissue's signal (limit {limit:.2f}); look at the pictures before you trust "
        "the answers",
    ),
    "fluid": _Rule(
        0.07,
        "fine structure is brighter than its surroundings (skew {value:.2f}, limit {limit:.2f}), as in T2; "
        "check that this volume is a FLAIR",
    ),
    "grey_white": _Rule(
        -0.01,
        "grey matter is darker than white matter (sign correlation {value:.2f}, limit {limit:.2f}), as in T1; "
        "check that this volume is a FLAIR",
        sign=-1,
    ),
    "mask_share": _Rule(
        0.35,
        "the mask covers {value:.2f} of the brain (limit {limit:.2f}), as a brain mask or a tissue segmentation does; "
        "give a tumour mask, or none",
        refuse=0.60,
    ),
    "mask_span": _Rule(
        0.80,
        "the mask reaches over {value:.2f} of the brain's width and length (limit {limit:.2f}), as a tissue "
        "segmentation does; give a tumour mask, or none",
        refuse=0.95,
    ),
    "mask_outside": _Rule(
        0.02,
        "{value:.2f} of the mask lies outside the brain (limit {limit:.2f}); give a mask on the volume's grid",
        refuse=0.50,
    ),
    "mask_bright": _Rule(
        0.60,
        "a voxel of the mask is brighter than one of other tissue in only {value:.2f} of pairs (limit {limit:.2f}), "
        "unlike a lesion in FLAIR; check that the mask belongs to this volume",
        sign=-1,
    ),
    "mask_mirrored": _Rule(
        0.05,
        "a mirrored copy of the mask lies on brighter tissue than the mask (gain {value:.2f}, limit {limit:.2f}); "
        "check that volume and mask have the same left, right, front and back",
    ),
}


def spread_slices(first: int, last: int, count: int = SLICES) -> list[int]:
    """At most `count` slice indices from `first` to `last`, both included, evenly apart: 60, 70, 80, 90, 100."""
    return sorted({round(index) for index in np.linspace(first, last, count).tolist()})


def check_volume(
    volume: np.ndarray, brain: np.ndarray | None, spacing_mm: tuple[float, float, float], modality: str
) -> tuple[Check, ...]:
    """Is it stripped, whole, quiet, and (where `modality` is "flair") is it a FLAIR?

    volume (S, H, W) of any dtype, finite, bright where the scanner's picture is: axial slices from about the middle of
    the brain in picture orientation, such as those of `spread_slices` in the range that is screened. brain: bool of
    its shape, or None where `find_background` finds no constant around the head. spacing_mm is (row, column, slice).
    Returns no check where no slice has enough brain.
    """
    if brain is None:
        reason = "no constant background around the brain; give a skull-stripped volume"
        return (Check("background", 0.0, 1.0, "refuse", reason),)
    volume, brain = _with_brain(volume, brain, spacing_mm)
    if volume.shape[0] == 0:
        return ()
    tissue = scale_by_tissue(volume, brain)
    outline = measure_outline(tissue, spacing_mm)
    checks = [_judge("skull", outline.ring_depth), _judge("cut_off", outline.flat_share)]
    if checks[0].verdict == "refuse":  # the other statistics are about brain, and this is a head
        return tuple(checks)
    texture = measure_texture(tissue, spacing_mm)
    checks.append(_judge("noise", texture.noise))
    if modality == "flair":
        checks.append(_judge("fluid", texture.fluid_skew))
        checks.append(_judge("grey_white", texture.grey_sign))
    return tuple(checks)


def check_mask(
    volume: np.ndarray, brain: np.ndarray, tumour: np.ndarray, spacing_mm: tuple[float, float, float]
) -> tuple[Check, ...]:
    """Is the mask one of a lesion, and of this FLAIR volume?

    volume and brain as for `check_volume`; tumour: bool of their shape. Returns no check where the slices hold less
    than 20 pixels of tumour: of what is not there nothing can be said.
    """
    volume, brain, tumour = _with_brain(volume, brain, spacing_mm, tumour)
    if np.count_nonzero(tumour) < _LEAST_MASK_PIXELS:
        return ()
    found = measure_mask(volume, brain, tumour)
    checks = [_judge("mask_outside", found.outside), _judge("mask_share", found.share), _judge("mask_span", found.span)]
    # Brightness compares the mask with the rest of the brain, so both must be there.
    if found.pixels_in_brain >= _LEAST_MASK_PIXELS and checks[1].verdict != "refuse":
        checks += [_judge("mask_bright", found.brightness), _judge("mask_mirrored", found.mirrored_gain)]
    return tuple(checks)


def check_labels(labels_are_there: bool, tumour_labels: Sequence[int]) -> tuple[Check, ...]:
    """A warning if a mask has labels in the slices, and none of them is one that means tumour.

    It may be right (a resection cavity alone), or `tumour_labels` are those of another dataset. Then every slice of the
    case would count as free of tumour.
    """
    if not labels_are_there:
        return ()
    wanted = ", ".join(map(str, tumour_labels))
    reason = f"the mask has labels in these slices, and none of them is one that means tumour ({wanted}); check them"
    return (Check("mask_labels", 0.0, 1.0, "warn", reason),)


def _with_brain(
    volume: np.ndarray, brain: np.ndarray, spacing_mm: tuple[float, float, float], *more: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The arrays without the slices that have too little brain."""
    pixels = np.array([np.count_nonzero(inside) for inside in brain])
    enough = pixels * (spacing_mm[0] * spacing_mm[1]) >= _LEAST_BRAIN_MM2
    return (volume, brain, *more) if enough.all() else tuple(array[enough] for array in (volume, brain, *more))


def _judge(name: str, value: float) -> Check:
    rule = _RULES[name]
    if not math.isfinite(value):
        return Check(name, math.nan, rule.warn, "warn", f"{name} cannot be measured; look at the pictures")
    if rule.sign * value >= rule.sign * rule.refuse and math.isfinite(rule.refuse):
        return Check(name, value, rule.refuse, "refuse", rule.reason.format(value=value, limit=rule.refuse))
    if rule.sign * value >= rule.sign * rule.warn:
        return Check(name, value, rule.warn, "warn", rule.reason.format(value=value, limit=rule.warn))
    return Check(name, value, rule.warn, "use", "")

"""Lesions of phantoms: a core in oedema that follows the white matter.

One decision: the oedema's outline is a distance that cortex, fluid and the midline make longer. So it reaches out in
fingers between the folds and leaves the cortex alone, as real oedema does and nothing that is drawn round.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medad_core.data.phantom_anatomy import Anatomy, Push
from medad_core.data.phantom_fields import Grid, Vector, ball, edge

NECROSIS = 1
OEDEMA = 2
ENHANCING = 4


@dataclass(frozen=True)
class LesionPlan:
    """Where and what a lesion will be, in mm from the brain's centre; no core (`core_mm` 0) is a low grade.

    `contrast` is the oedema's gain of signal, `necrotic` the share of the core's radius that is necrosis.
    """

    centre: Vector
    core_mm: float
    reach_mm: float
    contrast: float
    necrotic: float

    @property
    def push(self) -> Push:
        """The mass effect on the tissue around."""
        return Push(self.centre, by_mm=0.28 * self.core_mm, reach_mm=1.6 * self.reach_mm + 8)


def plan_lesion(rng: np.random.Generator) -> LesionPlan:
    """Choose place, size, kind and contrast: anywhere in the cerebrum, mostly within the slices that are screened."""
    side = rng.choice((-1, 1))
    angle = rng.uniform(0, 2 * np.pi)
    out = rng.uniform(0.3, 0.72)
    centre = (
        float(side * abs(np.cos(angle)) * out * 58 + side * 5),
        float(np.sin(angle) * out * 76),
        float(rng.uniform(-18, 40)),
    )
    reach = float(np.exp(rng.uniform(np.log(8), np.log(34))))
    solid = rng.random() < 0.25
    return LesionPlan(
        centre,
        core_mm=0.0 if solid else reach * rng.uniform(0.35, 0.75),
        reach_mm=reach,
        contrast=float(rng.uniform(0.22, 0.6)),
        necrotic=float(rng.uniform(0.3, 0.8)),
    )


def add_lesion(
    grid: Grid, plan: LesionPlan, anatomy: Anatomy, signal: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`signal` with the lesion in it, and its labels uint8 (0, 1 necrosis, 2 oedema, 4 enhancing), both (X, Y, Z)."""
    stretch = rng.uniform(0.8, 1.25, 3)
    around = ball(grid.axes, plan.centre, tuple(plan.reach_mm * stretch))
    fingers = around + 0.20 * grid.noise(rng, 0.9 * plan.reach_mm + 8) + 0.11 * grid.noise(rng, 9)
    texture = grid.double(grid.noise(rng, 14))
    fine = grid.double(grid.noise(rng, 5))
    # From here on in mm from the outline, negative inside; cortex and fluid hold it back, the other hemisphere more so.
    across = np.clip(-np.sign(plan.centre[0]) * grid.axes[0], 0, None)
    outline = grid.double((fingers - 1) * plan.reach_mm + 1.2 * across) + 5.0 * edge(anatomy.pial_mm - 2.6, 2.4)
    inside = edge(outline, 3.0) * (1 - anatomy.fluid)
    gain = plan.contrast * (0.88 + 0.10 * texture + 0.05 * fine)
    signal = signal + inside * gain
    labels = np.where(inside > 0.5, OEDEMA, 0).astype(np.uint8)
    if plan.core_mm > 0:
        signal, labels = _add_core(grid, plan, anatomy, signal, labels, rng, fine)
    return signal, labels


def _add_core(
    grid: Grid,
    plan: LesionPlan,
    anatomy: Anatomy,
    signal: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    fine: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """A rim of uneven thickness around necrosis, which in FLAIR is anything from dark to nearly as bright as oedema."""
    lumps = 0.13 * grid.noise(rng, 0.7 * plan.core_mm + 5) + 0.07 * grid.noise(rng, 5)
    around = ball(grid.axes, plan.centre, tuple(plan.core_mm * rng.uniform(0.8, 1.25, 3)))
    core = grid.double((around + lumps - 1) * plan.core_mm)
    rim = core + (1 - plan.necrotic) * plan.core_mm * (1 + 0.35 * grid.double(grid.noise(rng, 8)))
    solid = edge(core, 1.6) * np.where(anatomy.ventricle_mm > 1, 1, 0) * (anatomy.depth_mm > 1)
    dead = edge(rim, 2.2) * solid
    bright = 0.44 + plan.contrast * rng.uniform(0.55, 1.0) + 0.05 * fine
    dark = 0.40 + plan.contrast * rng.uniform(-0.55, 0.55) + 0.02 * fine
    signal = signal * (1 - solid) + bright * solid
    signal = signal * (1 - dead) + dark * dead
    labels = np.where(solid > 0.5, np.where(dead > 0.5, NECROSIS, ENHANCING), labels).astype(np.uint8)
    return signal, labels

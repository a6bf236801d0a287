"""AnomalyDINO (Damm et al. 2025) on the frozen encoder's features: cosine distance to the nearest normal patch.

One decision: it is PatchCore without a coreset. Every normal patch is remembered, of the last block alone, and a slice
has the mean of its hundredth of the farthest patches. The encoder's last LayerNorm is made up for by one without
weights. The paper's pictures are larger (448 pixels), and it turns its few reference pictures; here they have 224, and
all tumour-free training slices are references.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from medad_core.baselines.detector import SliceSet
from medad_core.baselines.patchcore import MAP_SIZE, PatchCore

REMEMBERED = 200_000  # patches: 300 MB of width 384
FARTHEST = 0.01


class AnomalyDINO(PatchCore):
    """See `Detector`."""

    pool = REMEMBERED

    def __init__(self, seed: int, device: str) -> None:
        super().__init__(REMEMBERED, seed, device)

    def _chosen(self, patches: Tensor) -> Tensor:
        return patches

    def _patches(self, slices: SliceSet, at: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Patches (n, P, d) of the last tap, of length 1, and which lie in the brain (n, P)."""
        features = slices.features(at)[:, -1]
        rows, columns = features.shape[1:3]
        cover = F.interpolate(slices.brain(at, MAP_SIZE).unsqueeze(1).float(), size=(rows, columns), mode="area")
        normed = F.layer_norm(features.flatten(1, 2), features.shape[-1:])
        return F.normalize(normed, dim=-1), cover.flatten(1) >= 0.5

    def _nearest(self, patches: Tensor) -> Tensor:
        return 1 - (patches @ self.memory.T).max(1).values

    def _scores(self, distances: Tensor, inside: Tensor, patches: Tensor) -> np.ndarray:
        """The mean of the largest hundredth of the brain's distances."""
        scores = []
        for of_slice, in_brain in zip(distances, inside, strict=True):
            brain = of_slice[in_brain]
            count = max(1, round(FARTHEST * len(brain)))
            scores.append(float(brain.topk(count).values.mean()) if len(brain) else 0.0)
        return np.array(scores, np.float64)

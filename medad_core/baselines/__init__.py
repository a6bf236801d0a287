"""Detectors to compare with, behind one interface: `fit(tumour-free slices)`, `score(slices)`.

A new one is a class with these two methods and a line in `build`.
"""

from __future__ import annotations

from medad_core.baselines.detector import Detector, Scored, SliceSet
from medad_core.config import BaselineTraining
from medad_core.models.encoder import VisionTransformerEncoder

__all__ = ["Detector", "Scored", "SliceSet", "build"]


def build(name: str, settings: BaselineTraining, encoder: VisionTransformerEncoder, seed: int, device: str) -> Detector:
    """The detector of a row of the table, which computes on `device`. Raises KeyError for a name that is none."""
    from medad_core.baselines.anomaly_dino import AnomalyDINO
    from medad_core.baselines.autoencoder import PerceptualAutoencoder
    from medad_core.baselines.brightness import Brightness
    from medad_core.baselines.masked_autoencoder import MaskedAutoencoder
    from medad_core.baselines.memory_autoencoder import MemoryAutoencoder
    from medad_core.baselines.patchcore import PatchCore

    makers = {
        "autoencoder": lambda: PerceptualAutoencoder(settings, encoder, seed, device),
        "masked-autoencoder": lambda: MaskedAutoencoder(settings, seed, device),
        "memory-autoencoder": lambda: MemoryAutoencoder(settings, seed, device),
        "patchcore": lambda: PatchCore(settings.coreset, seed, device),
        "anomaly-dino": lambda: AnomalyDINO(seed, device),
        "brightness": Brightness,
    }
    return makers[name]()

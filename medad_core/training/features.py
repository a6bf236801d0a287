"""Training slices: read once, encoded once, kept as half-precision arrays beside the weights being made.

One decision: one file a case, memory-mapped, so a cohort larger than memory trains, and a killed run encodes nothing twice.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from medad_core.config import Settings
from medad_core.data.cases import Case
from medad_core.data.read import read_slices
from medad_core.errors import CaseError
from medad_core.models.encoder import Encoder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingCase:
    """One labelled case: slice_index (N,), features (N, taps, gh, gw, width) float16 memory map, masks (N, H, W) bool."""

    case_id: str
    slice_index: np.ndarray
    features: np.ndarray
    masks: np.ndarray

    @property
    def has_tumour(self) -> np.ndarray:
        """(N,) bool."""
        return self.masks.any(axis=(1, 2))

    def within(self, first: int, last: int) -> np.ndarray:
        """Positions of the slices first..last, inclusive."""
        return np.flatnonzero((self.slice_index >= first) & (self.slice_index <= last))


def encode_case(case: Case, settings: Settings, encoder: Encoder, folder: Path) -> TrainingCase:
    """Read and encode one case for training, or take it from `folder` if it was encoded there before.

    Raises CaseError for an unlabelled case and for whatever `read_slices` refuses.
    """
    if case.mask is None:
        raise CaseError(case.case_id, "no segmentation; training needs one, leave the case out or add it")
    data = settings.data.model_copy(update={"first_slice": settings.train.first_slice, "last_slice": settings.train.last_slice})
    slices = read_slices(case, data)
    key = repr((case.case_id, data.scaling, data.modality, sorted(encoder.fingerprint.items()), slices.images.shape)).encode() + slices.images.tobytes()
    path = folder / f"{hashlib.sha256(key).hexdigest()[:24]}.npy"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        size = settings.models.batch_size
        batches = [encoder.encode(slices.images[start : start + size]).half() for start in range(0, len(slices.images), size)]
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        with scratch.open("wb") as stream:
            np.save(stream, torch.cat(batches).cpu().numpy())
        os.replace(scratch, path)
        log.info("encoded %s, %d slices", case.case_id, len(slices.images))
    return TrainingCase(case.case_id, slices.slice_index, np.load(path, mmap_mode="r"), slices.masks)

"""FLAIR brightness, the detector that costs nothing: tumour is often bright. Nothing is trained and no seed matters."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medad_core.baselines.detector import SCORE_BATCH, Scored, SliceSet, batches
from medad_core.metrics.brightness import slice_brightness
from medad_core.progress import ReportProgress

MAP_SIZE = 224


class Brightness:
    """Score: 99.5th percentile of the brain's pixels, at full size. Map: the picture itself."""

    training_error = None

    def fit(self, normal: SliceSet, progress: ReportProgress = lambda *_: None) -> None:
        """Nothing to learn."""

    def score(self, slices: SliceSet) -> Iterator[Scored]:
        """See `Detector`."""
        for at in batches(len(slices), SCORE_BATCH):
            scores = np.array([slice_brightness(*slices.native(place)) / 255 for place in at])
            yield Scored(scores, slices.pictures(at, MAP_SIZE)[:, 0] * slices.brain(at, MAP_SIZE))

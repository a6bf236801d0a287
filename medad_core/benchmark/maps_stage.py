"""The stage `maps` from Parquet to Parquet, beside the loop that most published code runs.

One decision: both run the same encoder at the same precision, in turns on the same slices. So the ratio says what the
loop costs, not what slower kernels would.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from medad_core.benchmark.effort import Effort
from medad_core.benchmark.generated import bytes_per_slice, text_of, write_run
from medad_core.benchmark.spread import Spread
from medad_core.benchmark.timing import in_turns, rate
from medad_core.config import Settings
from medad_core.models.decoder import image_scores, peaks, render_maps
from medad_core.models.device import batch_size_of
from medad_core.progress import ReportText
from medad_core.run.fingerprints import view_of
from medad_core.run.run import Run
from medad_core.stages import maps
from medad_core.stages.batches import batches_of, read_cases
from medad_core.stages.loading import MapModels


@dataclass(frozen=True)
class StageRates:
    """Rates in slices a second. `read_share` of the stage's time its reader is busy, in a thread of its own.

    `speed_up` is the stage's rate over the naive loop's, round by round.
    """

    stage_slices_s: Spread
    read_bytes_per_slice: float
    read_slices_s: float
    read_share: float
    naive_slices_s: Spread
    speed_up: Spread


def measure_stage(
    folder: str, model: str, models: MapModels, settings: Settings, effort: Effort, progress: ReportText
) -> StageRates:
    """Write a run of generated cases to `folder`, and measure the stage beside the naive loop, and reading alone.

    `models.batch_size` slices go through the encoder at once; the naive loop takes one at a time.
    """
    progress(f"writing {effort.cases} generated cases")
    run = Run(folder, settings)
    parts = write_run(run, effort.cases, effort.slices)
    total = effort.cases * effort.slices
    slices = run.stage("slices")
    case_ids = [case_id for part in slices.plan().parts for case_id in part.inputs]

    view = view_of(settings)

    def read_all() -> None:
        size = batch_size_of(settings, models.device)
        deque(batches_of(read_cases(slices, case_ids, view), size, pinned=models.device.type == "cuda"), maxlen=0)

    progress("reading alone")
    reading = total * rate(read_all, models.device, effort.least_s)
    progress("stage maps beside the naive loop")
    text = text_of(model, str(models.device), models.encoder.precision)
    works = {
        "stage": partial(maps.run_parts, run, range(parts), models=models),
        "naive": partial(naive_loop, run, case_ids, effort.naive_slices, models, text),
    }
    calls_s = in_turns(works, models.device, effort.stage_rounds, 0.0)
    stage = [calls * total for calls in calls_s["stage"]]
    naive = [calls * effort.naive_slices for calls in calls_s["naive"]]
    return StageRates(
        stage_slices_s=Spread.of(stage),
        read_bytes_per_slice=bytes_per_slice(slices, view),
        read_slices_s=reading,
        read_share=statistics.median(stage) / reading,
        naive_slices_s=Spread.of(naive),
        speed_up=Spread.of([ours / theirs for ours, theirs in zip(stage, naive, strict=True)]),
    )


@torch.inference_mode()
def naive_loop(
    run: Run, case_ids: Sequence[str], count: int, models: MapModels, text: Callable[[], torch.Tensor]
) -> list[float]:
    """Scores of `count` slices: one slice at a time, all sentences encoded again for each, nothing read ahead.

    That is what medad_core/README.md warns of. `text` encodes the sentences to (2, width).
    """
    decoder = models.decoder
    score = run.settings.models.image_score
    scores: list[float] = []
    learnt = decoder.text.clone()
    for case in read_cases(run.stage("slices"), case_ids, view_of(run.settings)):
        for image in case.images[: count - len(scores)]:
            decoder.text.copy_(text())
            grid = decoder(models.encoder.encode(np.ascontiguousarray(image[None]))).half()
            rendered = render_maps(grid, *image.shape[-2:])
            scores.append(float(image_scores(rendered, score.kind, score.quantile)))
            peaks(rendered).cpu()
        if len(scores) == count:
            break
    decoder.text.copy_(learnt)
    return scores

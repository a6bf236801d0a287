"""How fast slices become maps, and how near that is to what the device can do: `medad benchmark encode`.

One decision: every ratio is of things measured turn by turn in the same run: the encoder beside the fastest matrix product of
its precision, and the stage `maps`, reading and writing included, beside the loop that most published code runs.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from medad_core.benchmark.flops import flops_per_slice, shape_of
from medad_core.benchmark.generated import SIDE, bytes_per_slice, models_of, text_of, write_run
from medad_core.benchmark.timing import Spread, Work, best_gemm, in_turns, rate
from medad_core.config import Settings
from medad_core.models.blocks import PRECISIONS
from medad_core.models.decoder import image_scores, peaks, render_maps
from medad_core.models.device import device_of, precision_of, settle_torch
from medad_core.stages import maps
from medad_core.stages.batches import batches_of, read_cases
from medad_core.stages.loading import MapModels
from medad_core.store import stage_of

log = logging.getLogger(__name__)
Progress = Callable[[str], None]
PLAIN, COMPILED = "plain", "compiled"


@dataclass(frozen=True)
class Effort:
    """How much is measured: batch sizes tried, rounds and their least seconds, and at most so many generated cases, slices of each, and
    slices of the naive loop; a slow model gets as few slices as fill `stage_s` seconds a round, and no batch that takes longer than a sixth of it."""

    batches: tuple[int, ...]
    rounds: int
    least_s: float
    cases: int
    slices: int
    naive_slices: int
    stage_rounds: int
    stage_s: float = 30.0

    def for_rate(self, slices_s: float) -> Effort:
        """The same for an encoder of so many slices a second. The naive loop is given a quarter of the time, at our rate."""
        each = max(1, round(slices_s * self.stage_s / self.cases))
        return replace(
            self,
            slices=min(self.slices, each),
            naive_slices=min(self.naive_slices, max(2, round(slices_s * self.stage_s / 4))),
        )


EFFORT = {
    "cuda": Effort(
        (1, 8, 16, 32, 64, 128, 256, 512), rounds=7, least_s=1.0, cases=96, slices=41, naive_slices=100, stage_rounds=3
    ),
    "cpu": Effort((1, 2, 4, 8, 16, 32), rounds=5, least_s=2.0, cases=2, slices=41, naive_slices=10, stage_rounds=3),
    "mps": Effort((1, 8, 16, 32, 64), rounds=5, least_s=1.0, cases=8, slices=41, naive_slices=30, stage_rounds=3),
}


@dataclass(frozen=True)
class Variant:
    """The encoder alone, on slices that lie on the device: slices and FLOP a second, and shares of the GEMM peak measured turn by turn
    with it. The first call holds what compiling takes."""

    name: str
    batch_size: int
    slices_s: Spread
    flops_s: Spread
    peak_share: Spread
    first_call_s: float


@dataclass(frozen=True)
class EncodeReport:
    """All that was measured. Rates are a second, shares are of 1; `gemm_flops_s` is of the turns beside the plain encoder, and
    `stage_peak_share` is of its median. `read_share` is how much of the stage's time its reader is busy, in a thread of its own."""

    model: str
    device: str
    precision: str
    threads: int
    torch: str
    flops_per_slice: int
    gemm_side: int
    gemm_flops_s: Spread
    sweep: dict[int, float]
    variants: tuple[Variant, ...]
    stage_variant: str
    stage_slices_s: Spread
    stage_peak_share: float
    read_bytes_per_slice: float
    read_slices_s: float
    read_share: float
    naive_slices_s: Spread
    speed_up: Spread
    seconds: float


def benchmark_encode(
    model: str,
    settings: Settings,
    compiled: bool | None = None,
    effort: Effort | None = None,
    progress: Progress = log.info,
) -> EncodeReport:
    """Measure `model`: one of `SIZES` with random weights, or what `models.encoder` takes. `compiled` None: also compiled where there is a GPU.

    Raises UsageError for a device that is not there, WeightsError for a model that is not.
    """
    started = time.perf_counter()
    settle_torch(settings)
    torch.manual_seed(0)
    device, precision = torch.device(device_of(settings)), precision_of(settings)
    effort = effort or EFFORT[device.type]
    progress(f"building {model}")
    models = models_of(model, str(device), precision, settings.models)
    cost = flops_per_slice(shape_of(models.encoder))
    progress("the fastest matrix product")
    side, multiply = best_gemm(PRECISIONS[precision], device, effort.least_s / 2)
    sweep = _sweep(models, effort, progress)
    batch = max(sweep, key=sweep.__getitem__)
    measure = partial(_variant, models, batch, cost, side, multiply, effort)
    progress(f"encoder at batch {batch} beside the product")
    plain, peak = measure(PLAIN)
    variants = [plain]
    if compiled or (compiled is None and device.type == "cuda"):
        progress("compiling the encoder")
        variants += _compiled(models, plain, measure)
    best = max(variants, key=lambda variant: variant.slices_s.median)
    with tempfile.TemporaryDirectory(prefix="medad-benchmark-") as run:
        stage = _stage_and_naive(run, model, models, settings, batch, effort.for_rate(best.slices_s.median), progress)
    return EncodeReport(
        model=model,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        precision=precision,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        flops_per_slice=cost,
        gemm_side=side,
        gemm_flops_s=peak,
        sweep=sweep,
        variants=tuple(variants),
        stage_variant=best.name,
        stage_peak_share=stage["stage_slices_s"].median * cost / peak.median,
        seconds=time.perf_counter() - started,
        **stage,
    )


def _pictures(count: int, device: torch.device) -> torch.Tensor:
    return torch.randint(0, 256, (count, SIDE, SIDE), dtype=torch.uint8, device=device)


def _sweep(models: MapModels, effort: Effort, progress: Progress) -> dict[int, float]:
    """Slices a second of the encoder by batch size, up to the first that memory does not hold or that takes too long."""
    found: dict[int, float] = {}
    for size in effort.batches:
        progress(f"encoder at batch {size}")
        work = partial(models.encoder.encode, _pictures(size, models.device))
        try:
            work()
            found[size] = size * rate(work, models.device, effort.least_s)
            if size / found[size] > effort.stage_s / 6:
                break
        except torch.OutOfMemoryError:
            log.warning("batch %d does not fit", size)
            break
    return found


def _variant(
    models: MapModels, batch: int, cost: int, side: int, multiply: Work, effort: Effort, name: str
) -> tuple[Variant, Spread]:
    """The encoder and the matrix product in turns, and the peak that the product showed meanwhile."""
    encode, started = partial(models.encoder.encode, _pictures(batch, models.device)), time.perf_counter()
    encode()
    first = time.perf_counter() - started
    rates = in_turns({"encoder": encode, "product": multiply}, models.device, effort.rounds, effort.least_s)
    slices, peak = [calls * batch for calls in rates["encoder"]], [calls * 2 * side**3 for calls in rates["product"]]
    flops = [count * cost for count in slices]
    shares = [ours / best for ours, best in zip(flops, peak, strict=True)]
    return Variant(name, batch, Spread.of(slices), Spread.of(flops), Spread.of(shares), first), Spread.of(peak)


def _compiled(models: MapModels, plain: Variant, measure: Callable[[str], tuple[Variant, Spread]]) -> list[Variant]:
    """The same with `models.compile`, which the encoder keeps where it is faster. Where it cannot be had (no compiler, no Triton), the report goes without."""
    forwards, found = [block.forward for block in models.encoder.blocks], []
    models.encoder.compile_blocks()
    try:
        found.append(measure(COMPILED)[0])
    except (RuntimeError, OSError) as error:
        log.warning("torch.compile does not work here: %s", str(error).splitlines()[0])
    if not found or found[0].slices_s.median < plain.slices_s.median:
        for block, forward in zip(models.encoder.blocks, forwards, strict=True):
            block.forward = forward
    return found


def _stage_and_naive(
    run: str, model: str, models: MapModels, settings: Settings, batch: int, effort: Effort, progress: Progress
) -> dict:
    """The stage `maps` from Parquet to Parquet beside the naive loop from Parquet to scores, in turns; and reading alone."""
    progress(f"writing {effort.cases} generated cases")
    parts, total = write_run(run, effort.cases, effort.slices), effort.cases * effort.slices
    settings = settings.model_copy(update={"models": settings.models.model_copy(update={"batch_size": batch})})
    slices = stage_of(run, "slices")
    case_ids = [case_id for part in slices.plan().parts for case_id in part.inputs]
    progress("reading alone")
    reading = (
        rate(
            lambda: _exhaust(batches_of(read_cases(slices, case_ids), batch, models.device.type == "cuda")),
            models.device,
            effort.least_s,
        )
        * total
    )
    progress("stage maps beside the naive loop")
    text = text_of(model, str(models.device), models.encoder.precision)
    works = {
        "stage": partial(maps.run_parts, run, settings, range(parts), models=models),
        "naive": partial(naive_loop, run, case_ids, effort.naive_slices, models, text, settings),
    }
    rates = in_turns(works, models.device, effort.stage_rounds, 0.0)
    stage, naive = (
        [calls * total for calls in rates["stage"]],
        [calls * effort.naive_slices for calls in rates["naive"]],
    )
    return {
        "stage_slices_s": Spread.of(stage),
        "read_bytes_per_slice": bytes_per_slice(slices),
        "read_slices_s": reading,
        "read_share": statistics.median(stage) / reading,
        "naive_slices_s": Spread.of(naive),
        "speed_up": Spread.of([ours / theirs for ours, theirs in zip(stage, naive, strict=True)]),
    }


def _exhaust(items: Iterator) -> None:
    for _ in items:
        pass


@torch.inference_mode()
def naive_loop(
    run: str,
    case_ids: Sequence[str],
    count: int,
    models: MapModels,
    text: Callable[[], torch.Tensor],
    settings: Settings,
) -> list[float]:
    """Scores of `count` slices as METHOD section 8 warns of: one at a time, all sentences encoded again for each, nothing read ahead.

    The encoder and its precision are ours, so the ratio says what the loop costs, not what slower kernels would.
    """
    scores, decoder = [], models.decoder
    learnt = decoder.text.clone()
    for case in read_cases(stage_of(run, "slices"), case_ids):
        for image in case.images[: count - len(scores)]:
            decoder.text.copy_(text())
            grid = decoder(models.encoder.encode(np.ascontiguousarray(image[None]))).half()
            rendered = render_maps(grid, *image.shape)
            scores.append(
                float(image_scores(rendered, settings.models.image_score.kind, settings.models.image_score.quantile))
            )
            peaks(rendered).cpu()
        if len(scores) == count:
            break
    decoder.text.copy_(learnt)
    return scores

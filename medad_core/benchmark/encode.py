"""How fast slices become maps, and how near that is to what the device can do: `medad benchmark encode`.

One decision: every ratio is of things measured turn by turn in the same run. The encoder is measured beside the fastest
matrix product of its precision, and the stage `maps`, reading and writing included, beside the loop that most published
code runs.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from medad_core.benchmark.effort import EFFORT, Effort
from medad_core.benchmark.flops import flops_per_slice, shape_of
from medad_core.benchmark.generated import SIDE, models_of
from medad_core.benchmark.maps_stage import measure_stage
from medad_core.benchmark.spread import Spread
from medad_core.benchmark.timing import Work, best_gemm, in_turns, rate
from medad_core.config import Settings
from medad_core.errors import first_line
from medad_core.models.blocks import PRECISIONS
from medad_core.models.device import device_of, precision_of, settle_torch
from medad_core.progress import ReportText
from medad_core.run.fingerprints import view_of
from medad_core.stages.loading import MapModels

log = logging.getLogger(__name__)
PLAIN = "plain"
COMPILED = "compiled"


@dataclass(frozen=True)
class Variant:
    """The encoder alone, on slices that lie on the device: slices and FLOP a second.

    `peak_share` is of the matrix product measured turn by turn with it. The first call holds what compiling takes.
    """

    name: str
    batch_size: int
    slices_s: Spread
    flops_s: Spread
    peak_share: Spread
    first_call_s: float


@dataclass(frozen=True)
class EncodeReport:
    """All that was measured. Rates are a second, shares are of 1.

    `gemm_flops_s` is of the turns beside the plain encoder, and `stage_peak_share` is of its median. `read_share` is
    how much of the stage's time its reader is busy, in a thread of its own.
    """

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


@dataclass(frozen=True)
class _Bench:
    """What the encoder is measured with: operations of a slice, and the matrix product beside it."""

    models: MapModels
    flops_per_slice: int
    gemm_side: int
    multiply: Work
    effort: Effort


def benchmark_encode(
    model: str,
    settings: Settings,
    compiled: bool | None = None,
    effort: Effort | None = None,
    progress: ReportText = log.info,
) -> EncodeReport:
    """Measure `model`: one of `SIZES` with random weights, or what `models.encoder` takes.

    `compiled` None: also compiled where there is a GPU. Raises UsageError for a device that is not there, WeightsError
    for a model that is not.
    """
    started = time.perf_counter()
    settle_torch(settings)
    torch.manual_seed(0)
    device = torch.device(device_of(settings))
    precision = precision_of(settings)
    effort = effort or EFFORT[device.type]
    progress(f"building {model}")
    models = models_of(model, str(device), precision, settings.models, view_of(settings).image_pixels)
    cost = flops_per_slice(shape_of(models.encoder))
    progress("the fastest matrix product")
    side, multiply = best_gemm(PRECISIONS[precision], device, effort.least_s / 2)
    bench = _Bench(models, cost, side, multiply, effort)
    sweep = _sweep(bench, progress)
    batch = max(sweep, key=sweep.__getitem__)
    compiles = device.type == "cuda" if compiled is None else compiled
    variants, peak = _measure_variants(bench, batch, compiles, progress)
    best = max(variants, key=lambda variant: variant.slices_s.median)
    stage_effort = effort.for_rate(best.slices_s.median)
    best_settings = settings.model_copy(update={"models": settings.models.model_copy(update={"batch_size": batch})})
    with tempfile.TemporaryDirectory(prefix="medad-benchmark-") as folder:
        stage = measure_stage(folder, model, models, best_settings, stage_effort, progress)
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
        variants=variants,
        stage_variant=best.name,
        stage_peak_share=stage.stage_slices_s.median * cost / peak.median,
        seconds=time.perf_counter() - started,
        **vars(stage),
    )


def _encode_work(models: MapModels, count: int) -> Work:
    """A call that encodes `count` random slices that lie on the device."""
    pictures = torch.randint(0, 256, (count, SIDE, SIDE), dtype=torch.uint8, device=models.device)
    return partial(models.encoder.encode, pictures)


def _sweep(bench: _Bench, progress: ReportText) -> dict[int, float]:
    """Slices a second of the encoder by batch size, up to the first that is too large for memory or takes too long."""
    device = bench.models.device
    effort = bench.effort
    slices_s: dict[int, float] = {}
    for size in effort.batches:
        progress(f"encoder at batch {size}")
        encode = _encode_work(bench.models, size)
        try:
            encode()
            slices_s[size] = size * rate(encode, device, effort.least_s)
        except torch.OutOfMemoryError:
            log.warning("batch %d does not fit", size)
            break
        if size / slices_s[size] > effort.stage_s / 6:
            break
    return slices_s


def _measure_variants(
    bench: _Bench, batch: int, compiles: bool, progress: ReportText
) -> tuple[tuple[Variant, ...], Spread]:
    """The encoder plain, and compiled where it `compiles`; and the peak of the product beside the plain one."""
    progress(f"encoder at batch {batch} beside the product")
    plain, peak = _measure(bench, batch, PLAIN)
    if not compiles:
        return (plain,), peak
    progress("compiling the encoder")
    return (plain, *_compiled(bench, plain)), peak


def _measure(bench: _Bench, batch: int, name: str) -> tuple[Variant, Spread]:
    """The encoder and the matrix product in turns, and the peak in FLOP a second that the product showed meanwhile."""
    encode = _encode_work(bench.models, batch)
    started = time.perf_counter()
    encode()
    first_call_s = time.perf_counter() - started
    works: dict[str, Work] = {"encoder": encode, "product": bench.multiply}
    calls_s = in_turns(works, bench.models.device, bench.effort.rounds, bench.effort.least_s)
    slices = [calls * batch for calls in calls_s["encoder"]]
    flops = [count * bench.flops_per_slice for count in slices]
    peaks = [calls * 2 * bench.gemm_side**3 for calls in calls_s["product"]]
    shares = [ours / peak for ours, peak in zip(flops, peaks, strict=True)]
    variant = Variant(name, batch, Spread.of(slices), Spread.of(flops), Spread.of(shares), first_call_s)
    return variant, Spread.of(peaks)


def _compiled(bench: _Bench, plain: Variant) -> list[Variant]:
    """The same with `models.compile`, which the encoder keeps where it is faster.

    Where it cannot be had (no compiler, no Triton), the report goes without.
    """
    blocks = bench.models.encoder.blocks
    plain_forwards: list[Callable] = [block.forward for block in blocks]
    variants: list[Variant] = []
    bench.models.encoder.compile_blocks()
    try:
        variants.append(_measure(bench, plain.batch_size, COMPILED)[0])
    except (RuntimeError, OSError) as error:
        log.warning("torch.compile does not work here: %s", first_line(error))
    if not variants or variants[0].slices_s.median < plain.slices_s.median:
        for block, forward in zip(blocks, plain_forwards, strict=True):
            block.forward = forward
    return variants

"""The benchmark counts, times and compares what it says it does."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flows.cli.benchmark_tables import report_json, report_tables
from medad_core.benchmark.effort import Effort
from medad_core.benchmark.encode import benchmark_encode
from medad_core.benchmark.flops import Shape, flops_per_slice, shape_of
from medad_core.benchmark.generated import SIZES, Size, bytes_per_slice, random_encoder, text_of, write_run
from medad_core.benchmark.spread import Spread
from medad_core.benchmark.timing import GEMM_SIDES, in_turns, rate
from medad_core.config import load_settings
from medad_core.models.encoder import VisionTransformerEncoder, load_encoder
from medad_core.models.view import ALONE
from medad_core.models.vision import FAMILIES
from medad_core.run.run import Run

CPU = torch.device("cpu")


def counted(encoder) -> int:
    """Operations of one slice as torch counts them.

    Attention runs as plain products, the only form in which torch counts it on a CPU.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        encoder.encode(np.zeros((2, 224, 224), np.uint8))
    return counter.get_total_flops() // 2


def gated() -> VisionTransformerEncoder:
    """A small DINOv2 with the gated MLP of its giant size."""
    from transformers import Dinov2Config, Dinov2Model

    model = Dinov2Model(
        Dinov2Config(
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=2,
            image_size=224,
            patch_size=14,
            use_swiglu_ffn=True,
        )
    )
    return VisionTransformerEncoder(model, FAMILIES["dinov2"])


@pytest.mark.parametrize(
    "build",
    [
        lambda: load_encoder("dinov2-small"),
        lambda: random_encoder(Size("clip_vision_model", 96, 8, 3), "cpu", "float32"),
        gated,
    ],
    ids=["dinov2", "clip", "gated"],
)
def test_the_formula_counts_what_torch_counts(build):
    encoder = build()
    assert flops_per_slice(shape_of(encoder)) == counted(encoder)


def test_vit_h_14_costs_a_third_of_a_teraflop_a_slice():
    """By hand: 257 tokens, 32 blocks of 1280, MLP 5120."""
    block = 6 * 257 * 1280**2 + 4 * 257**2 * 1280 + 2 * 257 * 1280**2 + 4 * 257 * 1280 * 5120
    shape = Shape(depth=32, width=1280, mlp_width=5120, mlp_products=2, patch_size=14, patches=256, class_tokens=1)
    assert flops_per_slice(shape) == 32 * block + 2 * 256 * 588 * 1280 == 334_587_658_240


def test_sizes_are_those_of_the_published_models():
    with torch.device("meta"):
        millions = {
            name: sum(p.numel() for p in random_encoder(size, "meta", "bfloat16").parameters()) / 1e6
            for name, size in SIZES.items()
        }
    assert millions == {
        "vit-s-14": pytest.approx(22, rel=0.02),
        "vit-b-14": pytest.approx(86.6, rel=0.02),
        "vit-l-14": pytest.approx(304.4, rel=0.02),
        "vit-h-14": pytest.approx(630.8, rel=0.02),
    }


def test_a_rate_is_calls_by_seconds_and_turns_alternate():
    calls = []
    started = time.perf_counter()
    measured = rate(lambda: calls.append(time.sleep(0.02)), CPU, 0.2)
    assert measured == pytest.approx(len(calls) / (time.perf_counter() - started), rel=0.2) and len(calls) >= 2
    order = []
    rates = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CPU, 3, 0.0)
    assert order == ["a", "b"] * 4 and {name: len(values) for name, values in rates.items()} == {"a": 3, "b": 3}
    assert Spread.of([3.0, 1.0, 2.0, 9.0, 4.0]) == Spread(3.0, 1.0, 9.0, 5)


def test_bytes_of_a_slice_are_those_of_the_columns_that_are_read(tmp_path):
    run = Run(str(tmp_path), load_settings())
    write_run(run, cases=5, slices=3)
    slices = run.stage("slices")
    assert len(slices.plan().parts) == 2 and slices.read().num_rows == 15
    whole = sum(slices.records()[part].bytes for part in (0, 1)) / 15
    # Noise in 47 % of a picture does not compress; the packed brain mask and the rest of the row are not read.
    assert 0.47 * 240**2 < bytes_per_slice(slices, ALONE) < min(whole, 0.6 * 240**2)


def test_the_sentences_are_encoded_to_a_pair_of_unit_vectors():
    pair = text_of("vit-s-14", "cpu", "float32")()
    assert pair.shape == (2, 384)
    torch.testing.assert_close(pair.norm(dim=1), torch.ones(2))
    assert 0.3 < float(pair[0] @ pair[1]) < 0.999


def test_a_slow_model_is_given_fewer_slices_and_a_fast_one_no_more_than_there_are():
    effort = Effort((1, 2), rounds=2, least_s=1.0, cases=2, slices=41, naive_slices=10, stage_rounds=3, stage_s=30.0)
    slow = effort.for_rate(0.4)
    fast = effort.for_rate(1000.0)
    assert (slow.slices, slow.naive_slices) == (6, 3)
    assert (fast.slices, fast.naive_slices) == (41, 10)


@pytest.mark.parametrize(
    ("size", "precision"),
    [(Size("dinov2", 96, 4, 3), "float32"), (Size("clip_vision_model", 96, 4, 3, text=(64, 2, 2)), "bfloat16")],
    ids=["minilm", "clip text"],
)
def test_a_report_holds_together_and_prints(tmp_path, monkeypatch, size, precision):
    """A small encoder, so that the test takes seconds; the path is that of the true sizes."""
    from rich.console import Console

    monkeypatch.setitem(SIZES, "small", size)
    monkeypatch.setitem(GEMM_SIDES, "cpu", (64, 256))  # a CPU without bfloat16 takes 17 s for the product of 2048
    effort = Effort(batches=(1, 2), rounds=2, least_s=0.05, cases=2, slices=8, naive_slices=4, stage_rounds=2)
    steps = []
    report = benchmark_encode(
        "small",
        load_settings(None, ["models.device=cpu", "models.threads=1", f"models.precision={precision}"]),
        effort=effort,
        progress=steps.append,
    )
    (variant,) = report.variants
    assert list(report.sweep) == [1, 2] and variant.batch_size in (1, 2) and len(steps) > 4
    assert variant.flops_s.median == pytest.approx(variant.slices_s.median * report.flops_per_slice)
    peak, flops = report.gemm_flops_s, variant.flops_s
    assert flops.low / peak.high <= variant.peak_share.median <= flops.high / peak.low
    assert report.stage_peak_share == pytest.approx(
        report.stage_slices_s.median * report.flops_per_slice / report.gemm_flops_s.median
    )
    assert (
        report.read_share == pytest.approx(report.stage_slices_s.median / report.read_slices_s)
        and 0 < report.read_share < 1
    )
    assert report.speed_up.median > 1, "sixteen sentences for every slice cost nothing?"
    assert json.loads(report_json(report))["gemm_flops_s"]["n"] == 2
    console = Console(record=True, width=160, file=(tmp_path / "out").open("w"))
    for table in report_tables(report):
        console.print(table)
    text = console.export_text()
    assert "share of the product's FLOP/s" in text and "naive loop" in text and f"cpu, {precision}" in text

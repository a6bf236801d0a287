"""The maps stage: batches across cases, precision, memory, and workers on GPUs; on the packaged models."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from medad_core.config import load_settings
from medad_core.data.read import CaseSlices
from medad_core.errors import StoreError
from medad_core.models.blocks import Block
from medad_core.models.decoder import render_maps
from medad_core.models.device import worker_device
from medad_core.models.encoder import load_encoder
from medad_core.models.pack import packaged
from medad_core.run.run import Run
from medad_core.stages import maps
from medad_core.stages.batches import (
    CaseImages,
    ImageBatch,
    InPieces,
    batches_of,
    case_results,
    compute_batches,
    made_ahead,
)
from medad_core.stages.loading import load_map_models
from medad_core.stages.rows import grids_of, slice_rows
from medad_core.store import SLICES, stage_of

CPU = torch.device("cpu")
PLAIN = Path(__file__).parent / "versions" / "0.1.0" / "weights"  # for the slice alone, without a window
WORDS = ("models.threads=2", "models.device=cpu", f"models.weights={PLAIN}")


def pictures(count: int, height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    """Bright discs on grey discs: something a decoder has an opinion of."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    brain = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (height / 2.3) ** 2
    spots = [((y - a) ** 2 + (x - b) ** 2 < 36) for a, b in rng.uniform(20, 44, (count, 2))]
    return np.stack(
        [np.clip(80 * brain + 120 * (spot & brain) + rng.normal(0, 6, brain.shape) * brain, 0, 255) for spot in spots]
    ).astype(np.uint8)


def rows_of(case_id: str, images: np.ndarray) -> pa.Table:
    index = np.arange(len(images), dtype=np.int32)
    spacing = (1.0, 1.0, 1.0)
    return slice_rows(CaseSlices(case_id, index, images, images > 0, None, spacing, "LPS", spacing), "screen")


def run_with(folder: Path, parts: list[dict[str, pa.Table]]) -> str:
    """A run whose stage `slices` is finished with the given rows."""
    stage = stage_of(str(folder), "slices")
    stage.prepare({"generated": "for a test"}, [list(part) for part in parts])
    for number, part in enumerate(parts):
        stage.write_part(number, pa.concat_tables(part.values()))
    stage.finish()
    return str(folder)


def case(name: str, *shape: int) -> CaseImages:
    """A case without rows whose pictures all differ."""
    count = int(np.prod(shape))
    return CaseImages(name, None, (np.arange(count) % 251).astype(np.uint8).reshape(shape))


@pytest.fixture(scope="module")
def models():
    return load_map_models(load_settings(None, WORDS))


def drawn(models, images: np.ndarray, size: int) -> np.ndarray:
    """Maps (N, H, W) of one case through the stage's own loop."""
    settings = load_settings(None, [*WORDS, f"models.batch_size={size}"])
    ((_, (grids, _, _)),) = maps.maps_of(batches_of([CaseImages("case", None, images)], size), models, settings)
    return render_maps(torch.from_numpy(grids), *images.shape[1:]).numpy()


def test_batches_are_full_across_cases_and_results_come_back_case_by_case():
    cases = [case("a", 5, 4, 4), case("b", 3, 4, 4), case("c", 9, 4, 4), case("d", 2, 6, 4)]
    batches = list(batches_of(cases, 4))
    assert [batch.filled for batch in batches] == [4, 4, 4, 4, 1, 2]
    means = compute_batches(iter(batches), lambda images: (images.float().mean((1, 2)), images[:, 0, 0]), CPU)
    for wanted, (given, (mean, corner)) in zip(cases, case_results(means), strict=True):
        assert given is wanted
        np.testing.assert_allclose(mean, wanted.images.mean((1, 2)), rtol=1e-6)
        np.testing.assert_array_equal(corner, wanted.images[:, 0, 0])


def test_maps_do_not_depend_on_the_batch(models):
    images = pictures(65)[:, :48]
    many = drawn(models, images, 64)
    assert many.max() - many.min() > 0.05, "maps that say nothing would agree whatever is wrong"
    np.testing.assert_allclose(drawn(models, images[:15], 7), many[:15], atol=1e-3)
    np.testing.assert_allclose(drawn(models, images[60:], 1), many[60:], atol=1e-3)


@pytest.mark.parametrize(("precision", "bound"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_half_precision_moves_no_pixel_of_a_map_by_more_than_its_bound(models, precision, bound):
    images = pictures(4)
    exact, rounded = (
        drawn(models, images, 4),
        drawn(load_map_models(load_settings(None, WORDS), "cpu", precision), images, 4),
    )
    moved = np.abs(rounded - exact)
    assert 0 < moved.max() < bound and moved.mean() < bound / 10


def test_only_matrix_products_are_rounded():
    encoder = load_encoder("dinov2-small", precision="bfloat16")
    kinds = {
        type(module).__name__: {p.dtype for p in module.parameters(recurse=False)}
        for module in encoder.modules()
        if list(module.parameters(recurse=False))
    }
    assert kinds == {
        "Dinov2Embeddings": {torch.float32},
        "Conv2d": {torch.bfloat16},
        "Linear": {torch.bfloat16},
        "LayerNorm": {torch.float32},
    }
    assert encoder.encode(pictures(1)).dtype == torch.float32


def test_a_rebuilt_block_is_the_block_it_is_made_of():
    from transformers import Dinov2Model

    model, hidden = (
        Dinov2Model.from_pretrained(packaged("dinov2-small").folder).eval().requires_grad_(False),
        torch.randn(2, 17, 384),
    )
    wanted = model.encoder.layer[4](hidden)
    torch.testing.assert_close(Block(model.encoder.layer[4])(hidden), wanted, atol=1e-4, rtol=1e-4)


def test_all_blocks_and_batch_sizes_share_one_compiled_graph():
    torch._dynamo.reset()
    encoder, images, counter = load_encoder("dinov2-small"), pictures(3), CompileCounter()
    wanted = encoder.encode(images)
    encoder.compile_blocks(counter)
    for count in (3, 2):
        torch.testing.assert_close(encoder.encode(images[:count]), wanted[:count], atol=1e-3, rtol=1e-3)
    assert counter.frame_count == 1 and counter.op_count > 10


def test_a_case_that_cannot_be_used_takes_no_other_with_it(tmp_path, models):
    good, bad = [rows_of(name, pictures(3, seed=seed)) for seed, name in enumerate("ac")], rows_of("b", pictures(3))
    bad = bad.set_column(bad.column_names.index("height"), "height", pa.array([63] * 3, pa.int32())).cast(SLICES)
    run = run_with(tmp_path, [{"a": good[0], "b": bad, "c": good[1]}])
    settings = load_settings(None, [*WORDS, "models.batch_size=4"])
    maps.plan(Run.reopen(run, settings))
    (record,) = maps.run_parts(Run.reopen(run, settings), [0], models=models)
    assert (record.done, [item.key for item in record.failed]) == (2, ["b"]) and "4096" in record.failed[0].reason
    table = stage_of(run, "maps").read()
    assert table["case_id"].to_pylist() == ["a"] * 3 + ["c"] * 3
    alone = drawn(models, pictures(3, seed=1), 3)
    np.testing.assert_allclose(
        render_maps(torch.from_numpy(grids_of(table.slice(3))), 64, 64).numpy(), alone, atol=1e-3
    )


def test_a_map_that_is_not_finite_is_refused_with_the_way_out(tmp_path, models):
    run = run_with(tmp_path, [{"a": rows_of("a", pictures(2))}])
    settings = load_settings(None, WORDS)
    maps.plan(Run.reopen(run, settings))
    broken = load_map_models(settings)
    broken.decoder.text.fill_(torch.inf)
    (record,) = maps.run_parts(Run.reopen(run, settings), [0], models=broken)
    assert "models.precision=float32" in record.failed[0].reason


def test_parts_of_one_call_share_batches_and_are_written_apart(tmp_path, models, monkeypatch):
    run = run_with(tmp_path, [{name: rows_of(name, pictures(3, seed=ord(name)))} for name in "abcd"])
    settings = load_settings(None, [*WORDS, "models.batch_size=6"])
    maps.plan(Run.reopen(run, settings))
    sizes = []
    encode = models.encoder.encode
    monkeypatch.setattr(models.encoder, "encode", lambda images: sizes.append(len(images)) or encode(images))
    records = maps.run_parts(Run.reopen(run, settings), [0, 1, 3], models=models)
    assert sorted(sizes) == [3, 6] and [record.rows for record in records] == [3, 3, 3]
    assert stage_of(run, "maps").pending() == [2]


def test_memory_that_runs_out_halves_the_batch_for_the_rest_of_the_process(monkeypatch):
    monkeypatch.setattr(InPieces, "_learnt", {})
    seen = []

    def compute(images):
        seen.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError("a small device")
        return images.float().sum((1, 2)), images[:, 0, 0]

    images = torch.arange(13 * 4).reshape(13, 2, 2)
    sums, corners = InPieces(compute, 12, "small")(images)
    assert torch.equal(sums, images.float().sum((1, 2))) and torch.equal(corners, images[:, 0, 0])
    assert seen == [12, 6, 3, 3, 3, 3, 1]
    assert InPieces(compute, 12, "small").size == 3 and InPieces(compute, 12, "other").size == 12
    with pytest.raises(torch.OutOfMemoryError):
        InPieces(lambda images: compute(images.repeat(4, 1, 1)), 2, "tiny")(images)


def test_a_lane_that_ran_out_of_memory_later_does_not_raise_the_size_again(monkeypatch):
    monkeypatch.setattr(InPieces, "_learnt", {})
    both = threading.Barrier(2)

    def compute(images):
        seen.append(len(images))
        if len(images) == 16:
            both.wait(60)  # the two begin with the same size
            if images[0, 0, 0] == 1:
                small.wait(60)
            raise torch.OutOfMemoryError("a small device")
        if len(images) > 4:
            raise torch.OutOfMemoryError("a small device")
        small.set()
        return (images,)

    seen, small, pieces = [], threading.Event(), InPieces(compute, 16, "lanes")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(pieces, [torch.full((16, 1, 1), number) for number in (0, 1)]))
    assert pieces.size == 4 and seen.count(8) == 1


def test_reading_ahead_keeps_the_order_stays_near_and_raises_in_its_turn():
    made = []

    def items():
        for number in range(6):
            made.append(number)
            yield number
        raise StoreError("the seventh")

    reader, seen = made_ahead(items(), 2), []
    with pytest.raises(StoreError, match="the seventh"):
        for item in reader:
            assert len(made) <= item + 4
            seen.append(item)
    assert seen == [0, 1, 2, 3, 4, 5]
    next(abandoned := made_ahead(iter(range(100)), 2))
    abandoned.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


def test_a_batch_holds_pictures_of_one_size_only():
    batch = ImageBatch(torch.zeros(4, 3, 5, dtype=torch.uint8))
    assert batch.fits(case("a", 2, 3, 5)) and not batch.fits(case("b", 2, 5, 3)) and batch.fits(case("empty", 0, 9, 9))


def test_a_run_keeps_to_the_precision_that_it_was_begun_with(tmp_path, models):
    run = run_with(tmp_path, [{"a": rows_of("a", pictures(2))}, {"b": rows_of("b", pictures(2, seed=1))}])
    begun = load_settings(None, [*WORDS, "models.precision=bfloat16"])
    assert maps.plan(Run.reopen(run, begun)).fingerprint["precision"] == "bfloat16"
    maps.run_parts(Run.reopen(run, begun), [0])
    # Elsewhere `auto` would be float32; here it goes on as the run began, and an explicit float32 is refused.
    automatic = load_settings(None, WORDS)
    assert maps.plan(Run.reopen(run, automatic)).fingerprint["precision"] == "bfloat16"
    maps.run_parts(Run.reopen(run, automatic), [1])
    rounded = load_map_models(automatic, "cpu", "bfloat16")
    given = render_maps(torch.from_numpy(grids_of(stage_of(run, "maps").read_part(1))), 64, 64).numpy()
    np.testing.assert_allclose(given, drawn(rounded, pictures(2, seed=1), 2), atol=1e-6)
    assert np.abs(given - drawn(models, pictures(2, seed=1), 2)).max() > 1e-4
    with pytest.raises(StoreError, match=r"precision \(bfloat16 there, nothing now\)"):
        maps.plan(Run.reopen(run, load_settings(None, [*WORDS, "models.precision=float32"])))


def test_float32_maps_keep_the_fingerprint_that_they_had_before_there_were_others(tmp_path):
    run = run_with(tmp_path, [{"a": rows_of("a", pictures(2))}])
    for words in (WORDS, [*WORDS, "models.precision=float32"]):
        assert "precision" not in maps.plan(Run.reopen(run, load_settings(None, words))).fingerprint


def test_every_worker_has_a_gpu_of_its_own_and_one_too_many_waits(tmp_path):
    run, waited = str(tmp_path), []

    def late():
        with worker_device(run, "cuda", count=2) as device:
            waited.append(device)

    with worker_device(run, "cuda", count=2) as first:
        with worker_device(run, "cuda", count=2) as second, worker_device("another run", "cuda", count=2) as foreign:
            assert (first, second, foreign) == ("cuda:0", "cuda:1", "cuda:0")
            thread = threading.Thread(target=late)
            thread.start()
            thread.join(0.5)
            assert thread.is_alive() and not waited
        thread.join(5)
        assert waited == ["cuda:1"]
    with worker_device(run, "cuda:1") as named, worker_device(run, "cpu") as cpu:
        assert (named, cpu) == ("cuda:1", "cpu")

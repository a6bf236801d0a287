"""Batches that a CPU computes side by side: the maps of one thread, in order, whatever a batch does."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from test_maps import CPU, WORDS, pictures

from medad_core import stopping
from medad_core.config import load_settings
from medad_core.errors import Stopped
from medad_core.models.lanes import in_lanes, lane_count
from medad_core.stages import maps
from medad_core.stages.batches import CaseImages, batches_of, compute_batches
from medad_core.stages.loading import load_map_models


def results(models, cases: list[CaseImages], lanes: int) -> list[np.ndarray]:
    settings = load_settings(None, [*WORDS, f"models.threads={lanes}"])
    made = maps.maps_of(batches_of(cases, 3), models, settings)
    return [array for _, arrays in made for array in arrays]


def test_maps_are_the_same_to_the_bit_however_many_lanes_there_are():
    models = load_map_models(load_settings(None, WORDS))
    cases = [CaseImages(str(seed), None, pictures(count, seed=seed)) for seed, count in enumerate((5, 1, 7))]
    one, three = results(models, cases, 1), results(models, cases, 3)
    assert len(one) == 9 and one[0].shape[0] == 5 and np.ptp(one[1]) > 0
    for wanted, found in zip(one, three, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_results_come_in_order_and_each_lane_computes_with_one_thread():
    slow_first, seen = threading.Event(), set()

    def work(item: int) -> int:
        if item == 0:
            assert slow_first.wait(60)
        elif item == 2:
            slow_first.set()  # so the others went on meanwhile
        seen.add((threading.current_thread().name, torch.get_num_threads()))
        return item * item

    before = torch.get_num_threads()
    assert list(in_lanes(range(20), work, 3)) == [item * item for item in range(20)]
    assert 2 <= len(seen) <= 3 and {threads for _, threads in seen} == {1}
    assert torch.get_num_threads() == before


def test_threads_that_begin_later_have_as_many_of_torchs_as_before():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        made = in_lanes(itertools.repeat(0), lambda item: item, 2)
        next(made)
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 3
        made.close()
    finally:
        torch.set_num_threads(before)


def test_no_more_items_are_taken_than_lanes_need():
    taken = []
    items = iter(range(50))
    made = in_lanes((taken.append(item) or item for item in items), lambda item: item, 2)
    assert next(made) == 0 and len(taken) == 3
    made.close()
    assert next(items) == 3


def test_an_error_comes_at_its_place_and_ends_the_lanes():
    def work(item: int) -> int:
        return 1 // (item - 3)

    made = in_lanes(range(9), work, 2)
    assert [next(made) for _ in range(3)] == [1 // (item - 3) for item in range(3)]
    with pytest.raises(ZeroDivisionError):
        next(made)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane")]


def test_an_error_of_what_gives_the_items_comes_after_their_results():
    def items() -> Iterator[int]:
        yield from range(5)
        raise MemoryError("for a sixth")

    made = in_lanes(items(), lambda item: item, 4)
    assert [next(made) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(MemoryError, match="sixth"):
        next(made)


def test_lanes_have_one_thread_each_although_vllm_took_the_name_away(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)  # its engine on a CPU does that
    assert set(in_lanes(range(6), lambda _item: torch.get_num_threads(), 2)) == {1}


def test_a_lane_that_cannot_start_is_an_error_and_nothing_waits_for_it(monkeypatch):
    before = torch.get_num_threads()
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "lane_1":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        list(in_lanes(range(6), lambda item: item, 3))
    monkeypatch.undo()
    assert torch.get_num_threads() == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane")]
    assert list(in_lanes(range(6), lambda item: item, 3)) == list(range(6))


def test_a_run_that_is_stopped_computes_no_further_batch():
    started = []

    def compute(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        started.append(len(images))
        time.sleep(0.05)
        return (images.float(),)

    made = compute_batches(batches_of([CaseImages("a", None, pictures(40))], 2), compute, CPU, 2)
    next(made)
    stopping.request_stop()
    try:
        with pytest.raises(Stopped):
            list(made)
    finally:
        stopping.withdraw_request()
    assert len(started) <= 4


@pytest.mark.parametrize(
    ("words", "lanes"),
    [
        ([], 6),
        (["models.threads=4"], 4),
        (["flow.max_workers=2"], 3),
        (["flow.max_workers=9"], 1),
        (["flow.max_workers=2", "flow.runner=process"], 3),
        (["flow.max_workers=2", "flow.runner=ray"], 6),
        (["models.threads=4", "models.compile=true"], 0),
    ],
)
def test_workers_of_a_machine_share_its_cores(monkeypatch, words, lanes):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    settings = load_settings(None, words)
    assert lane_count(settings, CPU) == lanes and lane_count(settings, torch.device("cuda")) == 0

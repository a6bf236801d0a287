"""Batches that a CPU computes side by side, each in one thread.

One decision: a core computes a batch alone. Threads that share a batch wait for each other at every product, so where
one of them loses its core to other work, all lose theirs: on two cores, batches in lanes were made 1.2 times as fast
as batches that both share, alone and beside one other busy process (medad_core/benchmark/README.md).
So something else can begin while maps are made. And a batch's sums no longer depend on how many cores there are.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from medad_core.config import Settings
from medad_core.errors import Stopped

Given = TypeVar("Given")
Made = TypeVar("Made")
# vLLM's engine on a CPU replaces `torch.set_num_threads` by a function that does nothing, until the process ends.
_set_threads = torch._C.set_num_threads
# The number that was set last, in whatever thread, is that of every thread that begins. So one thread at a time may
# set another number, and must set the old one again.
_settling = threading.Lock()


def settle_threads(count: int | None) -> None:
    """Let this thread, and those that begin later, compute with `count` threads; None: with as many as they have."""
    with _settling:
        torch.get_num_threads()  # a thread's first call of torch sets its number, and would overwrite what is set here
        if count:
            _set_threads(count)


def lane_count(settings: Settings, device: torch.device) -> int:
    """Batches at once on a CPU: `models.threads`, else this worker's share of the cores.

    0 on another device, and where blocks are compiled: every lane would compile them for itself.
    """
    if device.type != "cpu" or settings.models.compile:
        return 0
    sharing = 1 if settings.flow.runner == "ray" else settings.flow.max_workers  # Ray tells torch of a worker's cores
    return settings.models.threads or max(1, torch.get_num_threads() // sharing)


def in_lanes(items: Iterable[Given], work: Callable[[Given], Made], count: int) -> Iterator[Made]:
    """What `work` makes of each item, in order, by `count` threads of one thread of torch each; 0: by the consumer's.

    At most `count` + 1 items are taken ahead of the consumer. An error of an item, or of what gives the items, is
    raised at its place, after the results before it; only Stopped is raised at once.
    """
    if not count:
        yield from map(work, items)
        return
    with _lanes(count) as pool:
        waiting: deque[Future[Made]] = deque()
        for future in _begun(pool, items, work):
            waiting.append(future)
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _begun(pool: ThreadPoolExecutor, items: Iterable[Given], work: Callable[[Given], Made]) -> Iterator[Future[Made]]:
    """The work on each item as it begins; where no further item can be had, the error is the last."""
    try:
        for item in items:
            yield pool.submit(work, item)
    except Stopped:
        raise
    except Exception as error:
        fault: Future[Made] = Future()
        fault.set_exception(error)
        yield fault


@contextmanager
def _lanes(count: int) -> Iterator[ThreadPoolExecutor]:
    settled = threading.Barrier(count + 1)

    def settle() -> None:
        torch.get_num_threads()  # as in `settle_threads`
        _set_threads(1)
        settled.wait()

    with _settling:
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(count, "lane", settle)
        try:
            for _ in range(count):
                pool.submit(int)  # starts a thread, because those before it wait
            settled.wait()
        except BaseException:  # a thread could not be started
            settled.abort()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            _set_threads(threads)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

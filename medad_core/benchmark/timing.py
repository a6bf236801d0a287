"""Timing on a CPU or a GPU that others may be using.

One decision: what is compared is measured turn by turn in the same minute, and reported as a median with its extremes.
A number taken alone says as much of the neighbours as of the code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

GEMM_SIDES = {"cuda": (2048, 4096, 8192, 16384), "cpu": (512, 1024, 2048), "mps": (1024, 2048, 4096)}
COPIED = 1 << 29  # bytes: more than any cache holds
Work = Callable[[], object]


def wait(device: torch.device) -> None:
    """Return when all that was queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def rate(work: Work, device: torch.device, least_s: float) -> float:
    """Calls of `work` a second, over as many calls as take `least_s`, at least one.

    The device's queue is empty before and after.
    """
    wait(device)
    started = time.perf_counter()
    elapsed = 0.0
    calls = 0
    more = 1
    while more:
        for _ in range(more):
            work()
        # Waiting after each call would empty the queue of a GPU, which the loop of a stage never does.
        wait(device)
        elapsed = time.perf_counter() - started
        calls += more
        missing = max(1, round(calls * (least_s - elapsed) / elapsed))
        more = min(calls, missing) if elapsed < least_s else 0
    return calls / elapsed


def in_turns(works: Mapping[str, Work], device: torch.device, rounds: int, least_s: float) -> dict[str, list[float]]:
    """Calls a second of every work, one list item a round: a, b, a, b, …

    One call of each beforehand is not counted.
    """
    for work in works.values():
        work()
    rates: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            rates[name].append(rate(work, device, least_s))
    return rates


@torch.inference_mode()
def gemm(side: int, dtype: torch.dtype, device: torch.device) -> Work:
    """A product of two random matrices (side, side), 2 side³ operations."""
    left = torch.randn(side, side, device=device).to(dtype)
    right = torch.randn(side, side, device=device).to(dtype)
    out = torch.empty_like(left)

    @torch.inference_mode()
    def multiply() -> None:
        torch.mm(left, right, out=out)

    return multiply


def best_gemm(dtype: torch.dtype, device: torch.device, least_s: float) -> tuple[int, Work]:
    """The square product that this device multiplies fastest in this precision: its side and itself."""
    flops_s: dict[int, float] = {}
    for side in GEMM_SIDES[device.type]:
        work = gemm(side, dtype, device)
        work()
        flops_s[side] = rate(work, device, least_s) * 2 * side**3
    best = max(flops_s, key=flops_s.__getitem__)
    return best, gemm(best, dtype, device)


def copy_rate(device: torch.device, least_s: float) -> float:
    """Bytes a second that a copy of `COPIED` bytes reads and writes in the memory of the device."""
    source = torch.empty(COPIED, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    target.copy_(source)
    return rate(lambda: target.copy_(source), device, least_s) * 2 * COPIED

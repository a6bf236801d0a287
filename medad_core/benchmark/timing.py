"""Timing on a CPU or a GPU that others may be using.

One decision: what is compared is measured turn by turn in the same minute, and told as a median with its extremes. A number
taken alone says as much of the neighbours as of the code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

GEMM_SIDES = {"cuda": (2048, 4096, 8192, 16384), "cpu": (512, 1024, 2048), "mps": (1024, 2048, 4096)}
Work = Callable[[], object]


def wait(device: torch.device) -> None:
    """Until all that was queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def rate(work: Work, device: torch.device, least_s: float) -> float:
    """Calls of `work` a second, over as many calls as take `least_s`; at least one. The queue is empty before and after."""
    wait(device)
    started, calls, upto, elapsed = time.perf_counter(), 0, 1, 0.0
    while calls < upto:
        work()
        calls += 1
        if calls == upto:
            wait(device)
            elapsed = time.perf_counter() - started
            # Waiting after each call would empty the queue of a GPU, which is what the loop of a stage never does.
            upto = (
                calls
                if elapsed >= least_s
                else min(2 * calls, calls + max(1, round(calls * (least_s - elapsed) / elapsed)))
            )
    return calls / elapsed


def in_turns(works: Mapping[str, Work], device: torch.device, rounds: int, least_s: float) -> dict[str, list[float]]:
    """Calls a second of every work, one list item a round: a, b, a, b, …; one call of each beforehand is not counted."""
    for work in works.values():
        work()
    rates: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            rates[name].append(rate(work, device, least_s))
    return rates


@torch.inference_mode()
def gemm(side: int, dtype: torch.dtype, device: torch.device) -> Work:
    """A product of two square matrices, 2 side³ operations."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)

    @torch.inference_mode()
    def multiply() -> None:
        torch.mm(left, right, out=out)

    return multiply


def best_gemm(dtype: torch.dtype, device: torch.device, least_s: float) -> tuple[int, Work]:
    """The square product that this device multiplies fastest in this precision: its side and itself."""
    found: dict[int, float] = {}
    for side in GEMM_SIDES[device.type]:
        work = gemm(side, dtype, device)
        work()
        found[side] = rate(work, device, least_s) * side**3
    side = max(found, key=found.__getitem__)
    return side, gemm(side, dtype, device)

"""Lets one stage at a time use the GPU, among all flow runs of a Prefect server.

One decision: the slot is a global concurrency limit of the server, which `medad deploy` creates. Without a server or a
GPU there is no slot. A stage holds the slot from start to end, because its models stay in the GPU's memory between its
parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.concurrency.sync import concurrency

from flows.orchestrator import server_url

LIMIT = "medad-gpu"


@contextmanager
def gpu_slot(device: str) -> Iterator[None]:
    """Wait for the slot and hold it while the block runs, if `device` is CUDA and a server is configured."""
    if server_url() is None or not device.startswith("cuda"):
        yield
        return
    # Not strict: without `medad deploy` a server has no such limit, and then a run needs none.
    with concurrency(LIMIT, raise_on_lease_renewal_failure=False):
        yield

"""One stage at a time on the GPU, of all flow runs of a Prefect server.

One decision: the slot is a global concurrency limit of the server, which `medad deploy` makes; where there is no server
or no GPU there is nothing to share. A stage holds it as a whole, because its models stay in the GPU's memory between
its parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.concurrency.sync import concurrency

from flows.orchestrator import server_url

LIMIT = "medad-gpu"


@contextmanager
def gpu_slot(device: str) -> Iterator[None]:
    """Hold the slot while the block runs, waiting for it, if `device` is a CUDA one and a server is configured."""
    if server_url() is None or not device.startswith("cuda"):
        yield
        return
    # Not strict: a server that `medad deploy` has never seen has no such limit, and one run there needs none.
    with concurrency(LIMIT, raise_on_lease_renewal_failure=False):
        yield

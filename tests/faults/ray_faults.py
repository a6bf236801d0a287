"""A fault in the workers of a Ray cluster, whose processes call `hold` when they start (`worker_process_setup_hook`).

MEDAD_HOLD names a folder. Where it has a file such as `maps-1`, the worker that begins part 1 of `maps` replaces it by
`maps-1.held`, with its node and its process number, and takes an hour for the part. Where it has files such as
`greet-1`, a worker that starts removes one and dies.
"""

from __future__ import annotations

import os
import time
from pathlib import Path


def hold() -> None:
    from flows.ray_worker import RangeWorker
    from medad_core.store import Stage

    begin = Stage.begin

    def begin_and_hold(stage: Stage, number: int) -> None:
        begin(stage, number)
        file = Path(os.environ["MEDAD_HOLD"]) / f"{stage.name}-{number}"
        try:
            file.unlink()
        except FileNotFoundError:
            return
        import ray

        node = ray.util.get_node_ip_address()
        written = file.with_suffix(".new")
        written.write_text(f"{node} {os.getpid()}", encoding="utf-8")
        written.rename(file.with_suffix(".held"))
        time.sleep(3600)

    greet = RangeWorker.greet

    def greet_or_die(worker: RangeWorker, expected):
        for file in Path(os.environ["MEDAD_HOLD"]).glob("greet-*"):
            file.unlink()
            os._exit(1)
        return greet(worker, expected)

    Stage.begin = begin_and_hold
    RangeWorker.greet = greet_or_die

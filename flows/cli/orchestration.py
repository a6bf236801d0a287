"""One measurement of `medad benchmark orchestration`, as a process: `python -m flows.cli.orchestration loop|flows DATA RUN < settings`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict

from flows.cli.quiet import prepare_process
from flows.cli.tables import terminal
from medad_core.benchmark.orchestration import loop, measure


def through_prefect(run: str, settings: str) -> float:
    """The flows of the same stages. The temporary server, and a first flow that does nothing, are start-up: they take the same for any work."""
    started = time.perf_counter()
    from prefect import flow

    from flows.cli.server import start_temporary_server
    from flows.stages import maps, slices

    start_temporary_server()
    flow(name="nothing", persist_result=False)(lambda: None)()
    start_s = time.perf_counter() - started
    slices(run, settings)
    maps(run, settings)
    return start_s


if __name__ == "__main__":
    prepare_process(False, terminal(stderr=True))
    print(
        json.dumps(
            asdict(
                measure(
                    {"loop": loop, "flows": through_prefect}[sys.argv[1]], sys.argv[2], sys.argv[3], sys.stdin.read()
                )
            )
        )
    )

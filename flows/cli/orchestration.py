"""One measurement of `medad benchmark orchestration`, as a process.

`python -m flows.cli.orchestration loop|flows DATA RUN < settings`
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict

from flows.cli.quiet import prepare_process
from flows.cli.terminal import terminal
from medad_core.benchmark.orchestration import STAGES, loop, measure
from medad_core.config import settings_from_yaml
from medad_core.run.run import Run


def through_prefect(run: Run) -> float:
    """The flows of the same stages; returns the seconds of their start-up.

    That is the temporary server, and a first flow that does nothing: they take the same for any work.
    """
    started = time.perf_counter()
    from prefect import flow

    from flows.cli.server import start_temporary_server
    from flows.stages import stage_within

    start_temporary_server()
    flow(name="nothing", persist_result=False)(lambda: None)()
    start_s = time.perf_counter() - started
    for name in STAGES:
        stage_within(run, name)
    return start_s


if __name__ == "__main__":
    prepare_process(False, terminal(stderr=True))
    way, data, run_uri = sys.argv[1:]
    settings = settings_from_yaml(sys.stdin.read())
    measured = measure({"loop": loop, "flows": through_prefect}[way], data, run_uri, settings)
    print(json.dumps(asdict(measured)))

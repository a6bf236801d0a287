"""Three ways to make the maps of one run on a Ray cluster of two nodes: plain actors, `ray.data`, prefect-ray.

    python tests/measure_ray.py 24                     # so many cases, one a part, of three small slices

One decision: all three have the same parts, the same ranges and the same code of the stage; they differ in who gives
ranges to processes, and in how long these live. prefect-ray is measured where it can be imported (prefect-ray 0.6.0).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prefect_harness import WORDS, write_case
from ray_nodes import RayNodes

from flows.executor import range_count
from flows.ray_cluster import connect
from flows.ray_pool import RayPool, end_kept
from medad_core.config import Settings, load_settings
from medad_core.run.run import Run
from medad_core.stages.complete import plan_stage, ranges_of
from medad_core.stages.workers import Worker, make_parts

WORKERS = 2


def by_actors(run: Run, ranges: list[list[int]]) -> None:
    """Actors of medad: they keep their models, and a thread waits for each."""
    pool = RayPool(run, "maps")
    with ThreadPoolExecutor(WORKERS) as threads:
        list(threads.map(lambda numbers: pool.make_parts(run.uri, run.settings, "maps", numbers), ranges))
    pool.close()
    end_kept()


def by_ray_data(run: Run, ranges: list[list[int]]) -> None:
    """`map_batches` of a class: its actors keep their models too."""
    import ray.data

    class Maker:
        def __init__(self, uri: str, settings: Settings) -> None:
            self.worker = Worker(uri, settings, "maps")

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            for numbers in batch["numbers"]:
                self.worker.make([int(number) for number in numbers.split()])
            return batch

    rows = [{"numbers": " ".join(map(str, numbers))} for numbers in ranges]
    ray.data.DataContext.get_current().enable_progress_bars = False
    made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Maker, fn_constructor_args=(run.uri, run.settings), batch_size=1, concurrency=WORKERS, num_cpus=1
    )
    made.materialize()


def by_prefect_ray(run: Run, ranges: list[list[int]]) -> None:
    """A task of Ray for each range: it loads the models again."""
    from prefect import flow, task
    from prefect_ray import RayTaskRunner

    make = task(make_parts, name="maps", persist_result=False)

    @flow(task_runner=RayTaskRunner(address=run.settings.flow.ray_address), persist_result=False)
    def maps() -> None:
        futures = [make.submit(run.uri, run.settings, "maps", numbers) for numbers in ranges]
        for future in futures:
            future.result()

    maps()


def main(cases: int) -> None:
    """Print the seconds that each way takes, twice, in turn."""
    scratch = Path(tempfile.mkdtemp(prefix="medad-"))
    nodes = RayNodes()
    try:
        nodes.join("127.1.0.2")
        for number in range(cases):
            write_case(scratch / "cases", f"BraTS2021_{number:05d}", seed=number)
        flow = ["flow.runner=ray", f"flow.max_workers={WORKERS}", f"flow.ray_address={nodes.address}"]
        settings = load_settings(None, [*WORDS, *flow])
        with Run.held(str(scratch / "cases"), str(scratch / "run"), settings) as run:
            plan_stage(run, "slices")
            make_parts(run.uri, settings, "slices", run.stage("slices").pending())
            run.stage("slices").finish()
            plan_stage(run, "maps")
        connect(settings.flow)
        ways: dict[str, Callable[[Run, list[list[int]]], None]] = {"actors": by_actors, "ray.data": by_ray_data}
        if importlib.util.find_spec("prefect_ray") is not None:
            ways["prefect-ray"] = by_prefect_ray
        for turn in range(2):
            for name, make in ways.items():
                copy = scratch / f"{name}-{turn}"
                shutil.copytree(scratch / "run", copy)
                opened = Run.reopen(str(copy), settings)
                ranges = ranges_of(opened.stage("maps").pending(), range_count(settings.flow, "maps"))
                started = time.perf_counter()
                make(opened, ranges)
                seconds = time.perf_counter() - started
                assert opened.stage("maps").pending() == []
                print(
                    f"turn {turn + 1}: {name:<12} {seconds:6.1f} s for {cases} parts in {len(ranges)} ranges",
                    flush=True,
                )
    finally:
        nodes.close()
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[1]))
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 24)

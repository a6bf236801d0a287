"""Runner ray on a real cluster of two nodes, each with a raylet of its own; one has a GPU that is not there."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from flows import ray_pool
from flows.orchestrator import check_orchestration
from flows.ray_cluster import check_cluster, connect, living_nodes
from flows.ray_worker import RangeWorker
from flows.screen import screen
from flows.stages import maps
from medad_core.config import Settings, load_settings
from medad_core.errors import MedadError, UsageError
from medad_core.models.device import device_of_maps, precision_of
from medad_core.store import PART_STAGES, stage_of

pytest_plugins = ("prefect_harness",)
OTHER = "127.1.0.2"
LINE_S = 30.0


@pytest.fixture(scope="module")
def nodes():
    from ray_nodes import RayNodes

    cluster = RayNodes()
    try:
        cluster.join(OTHER, gpus=1)
        yield cluster
    finally:
        import ray

        ray.shutdown()
        cluster.close()


@pytest.fixture
def on_ray(screened, nodes):
    """The settings of the run that nothing disturbed, for the cluster, and further words."""
    known = [*screened.words, "flow.runner=ray", "flow.max_workers=2", f"flow.ray_address={nodes.address}"]
    return lambda *words: load_settings(None, [*known, *words])


def refusal(settings: Settings, screened) -> str:
    """The line that refuses a run before anything is made, within LINE_S."""
    started = time.monotonic()
    with pytest.raises(UsageError) as refused:
        check_orchestration(settings)
        check_cluster(settings, screened.run, screened.data)
    assert time.monotonic() - started < LINE_S
    assert "\n" not in str(refused.value)
    return str(refused.value)


def until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_cluster_gives_the_rows_that_threads_give(screened, on_ray, tmp_path):
    run = str(tmp_path / "run")
    outcome = screen(screened.data, run, on_ray())
    assert [row[:2] for row in outcome.rejected] == [row[:2] for row in screened.outcome.rejected]
    for name in PART_STAGES:
        assert stage_of(run, name).read().equals(stage_of(screened.run, name).read()), name
    pd.testing.assert_frame_equal(pd.read_parquet(outcome.predictions), pd.read_parquet(screened.outcome.predictions))
    assert not list(Path(run).glob(".ray*")), "the token of the nodes is left in the run"
    # Nobody looks at the head after the run: it may end, and this process lives on.
    until(lambda: "medad-ray-head" not in {thread.name for thread in threading.enumerate()})


def test_workers_that_reserve_a_gpu_run_where_one_is(screened, on_ray, tmp_path):
    from ray._private.state import actors

    run = tmp_path / "run"
    shutil.copytree(screened.run, run)
    for part in (run / "maps").glob("part-*.parquet"):
        part.unlink()
    settings = on_ray("flow.ray_workers.maps.gpus=1", "models.device=cpu")
    connect(settings.flow)
    before = set(actors())
    assert maps(str(run), settings).finished
    asked = [facts for key, facts in actors().items() if key not in before]
    started = [facts["Address"]["IPAddress"] for facts in asked if facts["StartTime"]]
    assert started == [OTHER] and len(asked) == 2  # the second worker waited for a second GPU
    assert stage_of(str(run), "maps").read().equals(stage_of(screened.run, "maps").read())


def test_workers_that_die_while_they_start_end_the_run_and_no_part_is_blamed(screened, on_ray, tmp_path, monkeypatch):
    class Dying(RangeWorker):
        def greet(self, _expected):
            os._exit(1)

    monkeypatch.setattr(ray_pool, "RangeWorker", Dying)
    monkeypatch.setattr(ray_pool, "STARTS_LOST", 2)
    run = tmp_path / "run"
    shutil.copytree(screened.run, run)
    for part in (run / "maps").glob("part-*.parquet"):
        part.unlink()
    with pytest.raises(MedadError, match="2 workers of maps, one after another, died while they started"):
        maps(str(run), on_ray("flow.max_workers=1"))
    assert not any(record.failed for record in stage_of(str(run), "maps").records().values())


def test_what_is_no_cluster_is_named_in_one_line(screened, on_ray):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for address, line in (
            ("ray://127.0.0.1:10001", r"Ray Client (ray://) is not supported"),
            ("head", "should be HOST:PORT"),
            ("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9"),
            (f"127.0.0.1:{silent.getsockname()[1]}", "is no Ray cluster"),
        ):
            assert line in refusal(on_ray(f"flow.ray_address={address}"), screened)


def test_a_gpu_that_is_not_there_or_not_free_is_named_in_one_line(screened, on_ray):
    import ray

    assert "models.device=cuda: with flow.runner=ray" in refusal(on_ray("models.device=cuda"), screened)
    missing = refusal(on_ray("flow.ray_workers.answers.gpus=2"), screened)
    assert missing == "flow.ray_workers.answers: no node of the Ray cluster has 1 CPUs and 2 GPUs"

    @ray.remote(num_cpus=0, num_gpus=1)
    class Holder:
        def held(self) -> None:
            pass

    holder = Holder.remote()
    ray.get(holder.held.remote())
    taken = refusal(on_ray("flow.ray_workers.maps.gpus=1"), screened)
    assert "flow.ray_workers.maps: no node of the Ray cluster has 1 CPUs and 1 GPUs free now" in taken
    ray.kill(holder)


def test_a_node_with_another_version_or_without_the_folder_is_named_in_one_line(screened, nodes, on_ray, tmp_path):
    other = tmp_path / "packages" / "torch-9.9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n", encoding="utf-8")
    path = os.pathsep.join((str(other.parent), str(Path(__file__).parents[2])))
    nodes.join("127.1.0.3", PYTHONPATH=path)
    version = torch.__version__.partition("+")[0]
    assert f"node 127.1.0.3 has torch 9.9.9 where this machine has {version}" in refusal(on_ray(), screened)
    nodes.kill("127.1.0.3")
    until(lambda: len(living_nodes()) == 2)

    hidden = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {Path(screened.run).parent} && exec "$@"', "node")
    if subprocess.run([*hidden, "true"], capture_output=True).returncode == 0:  # needs rights that not all users have
        nodes.join("127.1.0.4", before=hidden)
        line = refusal(on_ray(), screened)
        assert f"node 127.1.0.4 does not see {screened.run}; choose an output folder that all nodes share" in line
        nodes.kill("127.1.0.4")
        until(lambda: len(living_nodes()) == 2)
    check_cluster(on_ray(), screened.run, screened.data)


def test_where_maps_are_made_is_said_by_the_workers_not_by_the_machine_of_the_command(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    on_gpus = ["flow.runner=ray", "flow.ray_workers.maps.gpus=1"]
    assert device_of_maps(load_settings(None, on_gpus)) == "cuda"
    assert precision_of(load_settings(None, [*on_gpus, "models.precision=bfloat16"])) == "bfloat16"
    with pytest.raises(UsageError, match=r"models\.precision: auto is settled by a GPU"):
        precision_of(load_settings(None, on_gpus))
    assert precision_of(load_settings(None, ["flow.runner=ray"])) == "float32"

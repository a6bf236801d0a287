"""The head of a Ray cluster that dies in the middle of a stage: the run ends in one line, a new cluster goes on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest
from disturbed import HERE, ends, gone, same_rows, screening, start, temporary_files, until

from medad_core.store import open_stages

TESTS = HERE.parent
LONG_S = 300.0  # on a busy machine it takes minutes until the workers have imported torch
END_S = 60.0
pytest_plugins = ("prefect_harness",)


@pytest.fixture
def cluster():
    from ray_nodes import RayNodes

    opened = []

    def open_cluster() -> RayNodes:
        opened.append(RayNodes(cpus=0))
        opened[-1].join("127.1.0.2", PYTHONPATH=os.pathsep.join((str(TESTS.parent), str(HERE))))
        return opened[-1]

    yield open_cluster
    for nodes in opened:
        nodes.close()


def test_a_head_that_dies_ends_the_run_in_one_line_and_a_new_cluster_goes_on(screened, server, cluster, tmp_path):
    run = tmp_path / "run"
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / "maps-1").touch()
    environment = f"{{worker_process_setup_hook: ray_faults.hold, env_vars: {{MEDAD_HOLD: {faults}}}}}"

    def words(address: str) -> list:
        where = ("flow.runner=ray", "flow.max_workers=1", f"flow.ray_address={address}")
        return screening(screened, run, *where, f"flow.ray_runtime_env={environment}")

    nodes = cluster()
    process = start(words(nodes.address), server=server)
    held = faults / "maps-1.held"
    until(held.exists, process, LONG_S)
    worker = psutil.Process(int(held.read_text(encoding="utf-8").split()[1]))
    nodes.kill(nodes.head)
    begun = time.monotonic()
    output = ends(process, 1, timeout=2 * END_S)
    seconds = time.monotonic() - begun
    until(lambda: gone([worker]), deadline_s=END_S)  # though its node lives
    nodes.close()
    assert f"the head of the Ray cluster at {nodes.address} does not answer any more" in output
    assert seconds < END_S and "Failed to connect to GCS" not in output
    for stage in open_stages(str(run)).values():
        if stage.find_plan() is not None:
            for number, record in stage.records().items():
                assert stage.read_part(number).num_rows == record.rows
    assert temporary_files(run) == []

    ends(start(words(cluster().address), server=server), 3, LONG_S)
    same_rows(screened, run)
    assert not list(Path(run).glob(".ray*"))

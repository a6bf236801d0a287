"""Nodes of a Ray cluster that are killed, and one that joins; a command that is terminated, and one that is killed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest
from disturbed import HERE, SOON_S, ends, gone, same_rows, screening, start, temporary_files, until

TESTS = HERE.parent
LONG_S = 600.0  # on a busy machine it takes minutes until the workers have imported torch
pytest_plugins = ("prefect_harness",)


@pytest.fixture(scope="module")
def nodes():
    from ray_nodes import RayNodes

    cluster = RayNodes(cpus=0)  # the head makes nothing, so that every worker can lose its node
    try:
        yield cluster
    finally:
        cluster.close()


def test_a_run_survives_its_nodes_its_command_and_a_signal(screened, server, nodes, tmp_path):
    run = tmp_path / "run"
    faults = tmp_path / "faults"
    faults.mkdir()
    path = os.pathsep.join((str(TESTS.parent), str(HERE)))
    for name in ("127.1.0.2", "127.1.0.3"):
        nodes.join(name, PYTHONPATH=path)
    environment = f"{{worker_process_setup_hook: ray_faults.hold, env_vars: {{MEDAD_HOLD: {faults}}}}}"
    words = screening(
        *(screened, run, "flow.runner=ray", "flow.max_workers=2", f"flow.ray_address={nodes.address}"),
        f"flow.ray_runtime_env={environment}",
    )

    def held(part: str, process) -> tuple[str, psutil.Process]:
        """Wait until a worker stands still in the middle of a part; returns its node and its process."""
        file = faults / f"{part}.held"
        until(file.exists, process, LONG_S)
        node, number = file.read_text(encoding="utf-8").split()
        return node, psutil.Process(int(number))

    # Terminated: the command ends within seconds, however busy the machine is, and leaves no worker and no file.
    (faults / "slices-0").touch()
    process = start(words, server=server)
    _, worker = held("slices-0", process)
    begun = time.monotonic()
    process.terminate()
    assert "medad: terminated; the same command goes on where it stopped" in ends(process, 143, timeout=60)
    assert time.monotonic() - begun < 2 * SOON_S
    until(lambda: gone([worker]), deadline_s=SOON_S)
    assert temporary_files(run) == []

    # A node is killed in the middle of maps; the other goes on. Then the command is killed: its workers end.
    (faults / "maps-1").touch()
    (faults / "prompts-0").touch()
    process = start(words, server=server)
    node, worker = held("maps-1", process)
    nodes.kill(node)
    until(lambda: gone([worker]), deadline_s=SOON_S)
    _, worker = held("prompts-0", process)
    process.kill()
    process.wait()
    until(lambda: gone([worker]), deadline_s=SOON_S)

    # The last node is killed in the middle of answers; one that joins gets the work. The part is not blamed for it, nor
    # for workers that die there before they have begun anything.
    (faults / "answers-1").touch()
    process = start(words, server=server)
    node, worker = held("answers-1", process)
    for number in range(3):
        (faults / f"greet-{number}").touch()
    nodes.kill(node)
    nodes.join("127.1.0.4", PYTHONPATH=path)
    assert "a node was lost in the middle of answers" in ends(process, 3, LONG_S)
    assert not list(faults.glob("greet-*"))
    same_rows(screened, run)
    assert not list(Path(run).glob(".ray*"))

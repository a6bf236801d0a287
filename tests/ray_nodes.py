"""A Ray cluster of several nodes on this machine: a raylet, an address and a session of processes each.

One decision: a node's processes are one process group, so that a node can lose its power, and nothing of it, nor of any
other cluster of the machine, is left behind or touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
START_S = 120.0
# A dead node is noticed within seconds; by default it takes half a minute.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_raylet_start_wait_time_s": "180",  # 30 s are few on a busy machine
}
SMALL = (
    "--object-store-memory",
    "100000000",
    "--min-worker-port",
    "0",
    "--max-worker-port",
    "0",
    "--include-log-monitor",
    "false",
)


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses; looked for one after another, two could be the same."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


class RayNodes:
    """`address` of a head with `cpus`; further nodes may have GPUs that are not there."""

    def __init__(self, cpus: int = 1) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix="ray-"))  # short: sockets lie below it
        self.processes: dict[str, subprocess.Popen] = {}
        self.head = "127.1.0.1"  # any address of the loopback device but 127.0.0.1, which Ray replaces by another
        port, clients = free_ports(2)
        self.address = f"{self.head}:{port}"
        try:
            self._start(
                self.head,
                *("--head", "--port", str(port), "--ray-client-server-port", str(clients)),
                *("--include-dashboard", "false", "--temp-dir", str(self.scratch), "--disable-usage-stats"),
                cpus=cpus,
            )
        except BaseException:
            self.close()
            raise

    def join(self, name: str, gpus: int = 0, before: tuple[str, ...] = (), **environment: str) -> None:
        """Start one more node, at an address such as 127.1.0.2; the words `before` begin its command."""
        self._start(name, "--address", self.address, "--num-gpus", str(gpus), before=before, **environment)

    def kill(self, name: str) -> None:
        """SIGKILL to every process of a node at once."""
        process = self.processes.pop(name)
        _kill(process)

    def close(self) -> None:
        for process in self.processes.values():
            _kill(process)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _start(self, name: str, *words: str, cpus: int = 1, before: tuple[str, ...] = (), **environment: str) -> None:
        variables = {**os.environ, **HEALTH, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT), **environment}
        command = [*before, str(Path(sys.executable).with_name("ray")), "start", "--block", "--node-ip-address", name]
        log = self.scratch / f"{name}.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [*command, "--num-cpus", str(cpus), *SMALL, *words],
                env=variables,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.processes[name] = process
        deadline = time.monotonic() + START_S
        while "Ray runtime started" not in log.read_text(encoding="utf-8"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.1)


def _kill(process: subprocess.Popen) -> None:
    """Kill a node: what it started is in its process group, but for workers, which are in its session."""
    import psutil

    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    for each in [process, *family]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each.pid, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(family, timeout=START_S)  # a process that has gigabytes mapped takes a while to end

"""The connection to a Ray cluster, and what is checked of it before a run begins.

One decision: a process connects once, and stays connected until it ends. Before anything is made, every node that a
worker may run on is looked at by a task of its own: the same versions, the same folders. What is wrong is one line.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from math import ceil
from typing import Any

from flows.interruption import end
from flows.ray_head import HeadWatch
from flows.ray_worker import Expected, fault_here, versions_here
from medad_core.config import FlowSettings, RayWorkers, Settings, WorkerResources
from medad_core.errors import MedadError, UsageError, first_line, in_one_line
from medad_core.store.files import join, local_path, remove, write_bytes
from medad_core.surroundings.processes import clean_environment

TOKEN = ".ray-token"
ADDRESS = re.compile(r"(?P<host>[^\s/:]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")
PORT_S = 5.0  # until the port accepts a connection, and speaks
NODE_S = 20  # until Ray finds the node that this machine is
GCS_S = 15.0  # until Ray's own service answers on it
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # how gRPC begins
SETTINGS = bytes((4,))  # the kind of the server's first frame
LOOK_S = 60.0  # until every node has been looked at: the first process of a node takes seconds to start
ORDERLY_S = 8.0  # for a command to end by itself when the head is lost
FREE_S = 10.0  # until a worker's resources are free
OBJECT_STORE_BYTES = 100_000_000  # only references and counts travel
GIB = 2**30
_connected: dict[str, str | None] = {}  # "address": of the cluster that this process is connected to
_watched: list[HeadWatch] = []  # its head, while a stage uses it


def address_of(text: str) -> tuple[str, int]:
    """Host and port of `flow.ray_address`. Raises UsageError."""
    if text.startswith("ray://"):
        raise UsageError(
            "flow.ray_address: Ray Client (ray://) is not supported; start medad on a machine of the cluster, and give "
            "the HOST:PORT that `ray start --head` printed"
        )
    match = ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        raise UsageError(f"flow.ray_address={text}: should be HOST:PORT, as `ray start --head` printed it")
    return match["host"].strip("[]"), int(match["port"])


def connect(settings: FlowSettings) -> None:
    """Connect this process to the cluster of the settings, or start Ray on this machine. Raises UsageError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning; `RangeWorker` hides the GPUs
    os.environ.setdefault("RAY_gcs_server_request_timeout_seconds", str(NODE_S))
    clean_environment()
    import ray

    address = settings.ray_address
    if ray.is_initialized():
        if _connected.get("address") == address:
            return
        ray.shutdown()
    if address is not None:
        _check_service(address)
        where: dict[str, Any] = {"address": address}
    else:
        cpus = max(worker.cpus for worker in settings.ray_workers.stages().values())
        where = {
            "address": "local",
            "num_cpus": max(1, ceil(cpus * settings.max_workers)),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    with _handlers_kept():
        try:
            ray.init(**where, runtime_env=settings.ray_runtime_env, log_to_driver=False, logging_level=logging.CRITICAL)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise UsageError(
                f"flow.ray_address: cannot connect to Ray, of whose cluster this machine must be a node ({reason})"
            ) from error
    _silence()
    _connected["address"] = address


@contextmanager
def head_watched() -> Iterator[None]:
    """While the block uses the cluster, notice the loss of its head, for `check_head` and `head_is_lost`.

    A process that does not end soon after such a loss is ended: Ray waits for its head in places that nothing
    interrupts. A head that ends after the block concerns nobody.
    """
    import ray

    watch = HeadWatch(ray.get_runtime_context().gcs_address, then=_end_later)
    _watched.append(watch)
    try:
        yield
    finally:
        watch.close()
        _watched.remove(watch)


def _end_later(address: str) -> None:
    time.sleep(ORDERLY_S)
    sys.stderr.write(f"medad: {_lost(address)}\n")
    end(1)


def head_is_lost() -> bool:
    """Whether the head of the cluster does not answer any more. What asks it would wait until Ray ends the process."""
    return any(watch.is_lost for watch in _watched)


def check_head() -> None:
    """Raise MedadError where the head of the cluster is lost."""
    for watch in _watched:
        if watch.is_lost:
            raise MedadError(_lost(watch.address))


def _lost(address: str) -> str:
    return (
        f"flow.ray_address: the head of the Ray cluster at {address} does not answer any more; start a "
        "cluster, and the same command goes on where it stopped"
    )


def _silence() -> None:
    """Print nothing of what Ray says, pages long and on stdout, about nodes that died; no setting of Ray prevents it.

    The supervisor says what became of their parts.
    """
    from ray._private import worker

    worker.print_to_stdstream = lambda *_args, **_options: None


def _check_service(address: str) -> None:
    """Ask whether Ray is there: `ray.init` would try for two minutes, and then end the process."""
    host, port = address_of(address)
    try:
        with socket.create_connection((host, port), timeout=PORT_S) as there:
            there.sendall(HTTP2)
            speaks = there.recv(len(SETTINGS) + 3)[3:] == SETTINGS
    except TimeoutError:
        speaks = False
    except OSError as error:
        raise UsageError(
            f"flow.ray_address: no Ray cluster answers at {address} ({error.strerror or first_line(error)}); start it "
            "with `ray start --head`, or set flow.runner=thread"
        ) from error
    if not speaks or not _answers(address):
        raise UsageError(
            f"flow.ray_address: what listens at {address} is no Ray cluster; give the HOST:PORT that "
            "`ray start --head` printed"
        )


def _answers(address: str) -> bool:
    """Whether the service of a head node answers in GCS_S. Its library would wait longer."""
    answered: list[bool] = []

    def ask() -> None:
        from ray._raylet import GcsClient  # as `ray health-check` does; there is no public way

        with suppress(Exception):
            GcsClient(address=address)
            answered.append(True)

    asking = threading.Thread(target=ask, name="medad-ray", daemon=True)
    asking.start()
    asking.join(GCS_S)
    return bool(answered)


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Keep the handlers of signals: Ray sets one for SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def demand_of(worker: WorkerResources) -> dict[str, float]:
    """The resources of a worker, in Ray's names."""
    asked = {"CPU": worker.cpus, "GPU": worker.gpus, "memory": worker.memory_gib * GIB}
    return {name: amount for name, amount in asked.items() if amount}


def holds(node: Mapping[str, Any], worker: WorkerResources) -> bool:
    """Whether a worker fits a node when nothing else runs there."""
    has = node["Resources"]
    return all(has.get(name, 0) >= amount for name, amount in demand_of(worker).items())


def living_nodes() -> list[dict[str, Any]]:
    """The nodes of the cluster that are alive, as Ray describes them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


@contextmanager
def expected_of(folder: str, root: str | None) -> Iterator[Expected]:
    """What every node must have for a run in `folder`, of cases below `root`; the block keeps the token there."""
    token = None
    if local_path(folder) is not None:
        token = (join(folder, TOKEN), secrets.token_hex(16).encode())
        write_bytes(*token)
    try:
        yield Expected(versions_here(), folder, token, root if root and local_path(root) is not None else None)
    finally:
        if token is not None:
            with suppress(MedadError):
                remove(token[0])


def check_cluster(settings: Settings, folder: str, root: str) -> None:
    """Check that workers of Ray can make a run in `folder`, of cases below `root`. Raises UsageError."""
    if settings.flow.runner != "ray":
        return
    connect(settings.flow)
    with expected_of(folder, root) as expected:
        _check_nodes(expected, settings.flow.ray_workers)
    _check_room(settings.flow.ray_workers)


def _check_nodes(expected: Expected, workers: RayWorkers) -> None:
    """Look at every node that a worker may run on."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(fault_here)
    looks = {}
    for node in living_nodes():
        if any(holds(node, worker) for worker in workers.stages().values()):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            looks[look.options(scheduling_strategy=there).remote(expected)] = node["NodeManagerAddress"]
    deadline = time.monotonic() + LOOK_S
    while looks:
        ready, _ = ray.wait(list(looks), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise UsageError(f"flow.ray_address: node {next(iter(looks.values()))} starts no process in {LOOK_S:.0f} s")
        name = looks.pop(ready[0])
        try:
            fault = ray.get(ready[0])
        except ray.exceptions.RayError as error:
            reason = in_one_line(getattr(error, "cause", None) or error)
            fault = f"cannot run medad ({reason}); install medad there, or set flow.ray_runtime_env"
        if fault is not None:
            raise UsageError(f"flow.ray_address: node {name} {fault}")


def _check_room(workers: RayWorkers) -> None:
    """Check that a worker of each stage fits a node, and that its resources are free now."""
    from ray.util.placement_group import placement_group, remove_placement_group

    nodes = living_nodes()
    for stage, worker in workers.stages().items():
        demand = demand_of(worker)
        if not any(holds(node, worker) for node in nodes):
            raise UsageError(f"flow.ray_workers.{stage}: no node of the Ray cluster has {in_words(worker)}")
        if not demand:
            continue
        reserved = placement_group([demand])
        try:
            if not reserved.wait(FREE_S):
                raise UsageError(
                    f"flow.ray_workers.{stage}: no node of the Ray cluster has {in_words(worker)} free now; wait, or "
                    "end what else runs there"
                )
        finally:
            remove_placement_group(reserved)


def in_words(worker: WorkerResources) -> str:
    """Such as "1 CPUs, 1 GPUs and 16 GiB of memory"."""
    words = [f"{worker.cpus:g} CPUs"]
    words += [f"{worker.gpus:g} GPUs"] * bool(worker.gpus)
    words += [f"{worker.memory_gib:g} GiB of memory"] * bool(worker.memory_gib)
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)

"""The workers of a stage on a Ray cluster: plain actors, each with models that it loads once and keeps.

One decision: plain actors, neither `ray.data` nor prefect-ray. `ray.data.map_batches` retries blocks by itself and
reports a bad one only by failing all of its job, so nobody could try a part alone; `ray.data.llm` takes no prompt
embeddings. prefect-ray starts Ray anew for each stage, loads the models for each range, and its tasks on other machines
know no Prefect server (Prefect #18485). `tests/measure_ray.py` compares all three.

A thread of the flow waits for each range that is made. Where a worker dies, the thread raises WorkerLost, and a new
worker is asked for, which starts when a node has room for it. So a node that joins gets work. A node that is lost is no
fault of the part that was made there: the range is made again, and the supervisor does not hear of it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack
from typing import Any

from flows.ray_cluster import (
    GIB,
    check_head,
    connect,
    expected_of,
    head_is_lost,
    head_watched,
    holds,
    in_words,
    living_nodes,
)
from flows.ray_head import answers
from flows.ray_worker import Made, RangeWorker
from medad_core import stopping
from medad_core.config import Settings
from medad_core.errors import MedadError, Stopped, first_line
from medad_core.faults.travel import unpack
from medad_core.run.run import Run
from medad_core.store import PART_STAGES, PartRecord

log = logging.getLogger(__name__)
POLL_S = 0.1
HOPE_S = 300.0  # that no node can hold a worker before the run gives up: a node may come back
PATIENCE_S = 60.0  # between two lines that say that a stage waits
GONE_S = 2.0  # until a worker that was killed is gone
CLOSE_S = 10.0  # until an engine has ended its processes
NODES_LOST = 5  # under one range; after so many the range may be what ends them
STARTS_LOST = 8  # times that all workers died while they started, and none did not
LAST = [*PART_STAGES][-1]  # after this stage the workers end; before, the next stage takes them over
_kept: dict[tuple[object, ...], list[Any]] = {}  # workers between two stages: a new one imports torch for seconds


class WorkerLost(BrokenExecutor):
    """A worker died in the middle of a range: its node lives, or is the last of many that were lost under it."""


def end_kept() -> None:
    """End the workers that no stage has taken over; their resources are free again."""
    import ray

    for actors in _kept.values():
        for actor in actors:
            ray.kill(actor)
    _kept.clear()


class RayPool:
    """At most `flow.max_workers` workers of one stage. They start with its first range."""

    def __init__(self, run: Run, stage: str) -> None:
        self.run = run
        self.stage = stage
        self.flow = run.settings.flow
        self.resources = self.flow.ray_workers.stages()[stage]
        self._lock = threading.Lock()
        self._open = ExitStack()
        self._class: Any = None  # of the actors, once connected
        self._starting: dict[Any, Any] = {}  # actor by the reference to its first answer
        self._idle: list[Any] = []
        self._busy: dict[Any, Any] = {}  # reference to the range that it makes, by actor
        self._node: dict[Any, str] = {}  # the id of its node, by actor that has started
        self._stillborn = 0  # workers that died while they started, since one did not
        self._has_lost_nodes = False
        self._refused = ""  # what is wrong with the last node that was refused

    def make_parts(
        self, _run: str, _settings: Settings, _stage: str, numbers: Sequence[int], attempt: int = 1
    ) -> list[PartRecord]:
        """Make parts on a worker, as `medad_core.stages.workers.make_parts` does. Raises WorkerLost as well."""
        asked = numbers
        for nodes_left in reversed(range(NODES_LOST + 1)):
            actor, reference = self._take(list(numbers), attempt)
            try:
                made = self._result(actor, reference)
                break
            except Stopped:
                raise  # it is in the middle of its range, and killed when the pool is closed
            except Exception as error:  # the worker died, or gave an answer that cannot be read
                check_head()
                is_lost = isinstance(error, WorkerLost) and self._is_node_lost(actor)
                self._replace(actor)
                if not is_lost or not nodes_left:
                    raise
            self._has_lost_nodes = True
            log.warning("a node was lost in the middle of %s; its parts are made again on another", self.stage)
            pending = set(self.run.stage(self.stage).pending())
            numbers = [number for number in numbers if number in pending]
            if not numbers:
                return self._records(asked)
        with self._lock:
            if self._busy.pop(actor, None) is not None:
                self._idle.append(actor)
        for name, level, message in made.logged:
            logging.getLogger(name).log(level, "%s", message)
        if made.error is not None:
            raise unpack(made.error)
        return made.records if len(numbers) == len(asked) else self._records(asked)

    def _records(self, numbers: Sequence[int]) -> list[PartRecord]:
        """The records of parts, of which a node that was lost had made some."""
        records = self.run.stage(self.stage).records()
        return [records[number] for number in numbers]

    def _replace(self, actor: Any) -> None:
        """End a worker, and ask for another one."""
        with self._lock:
            self._busy.pop(actor, None)
            self._node.pop(actor, None)
            self._end(actor)
            self._start()

    def _is_node_lost(self, actor: Any) -> bool:
        """Whether the node that a worker ran on is dead, or cannot be reached. Ray notices it only after a while."""
        import ray

        try:
            (node,) = [node for node in ray.nodes() if node["NodeID"] == self._node.get(actor)]
        except (ValueError, ray.exceptions.RayError):  # the cluster has forgotten it, or does not say
            return True
        return not node["Alive"] or not answers(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")

    def close(self) -> None:
        """Give all workers back. Those that are in the middle of a range are killed, and gone when this returns."""
        with self._lock:
            if self._class is None:
                return
            if not head_is_lost():  # else the workers end by themselves
                self._give_back()
            self._starting, self._idle, self._busy, self._node, self._class = {}, [], {}, {}, None
        self._open.close()
        if self._has_lost_nodes:
            self.run.stage(self.stage).sweep()

    def _give_back(self) -> None:
        import ray

        closing = [actor.close.remote() for actor in self._idle]
        if closing and not self._busy:
            ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S)
        waiting = [*self._idle, *self._starting.values()]
        keeps = not self._busy and self.stage != LAST
        if keeps:
            _kept[self._key()] = waiting
        for actor in self._busy if keeps else [*self._busy, *waiting]:
            ray.kill(actor)
        if self._busy:  # their ranges fail when they are gone
            ray.wait(list(self._busy.values()), num_returns=len(self._busy), timeout=GONE_S)

    def _open_cluster(self) -> None:
        """Connect, and ask for all workers; those that the stage before left are taken over, if they are alike."""
        import ray

        connect(self.flow)
        root = self.run.cohort.root if self.stage == "slices" else None
        self._expected = self._open.enter_context(expected_of(self.run.uri, root))
        self._open.enter_context(head_watched())
        self._class = ray.remote(RangeWorker).options(
            num_cpus=self.resources.cpus,
            num_gpus=self.resources.gpus,
            memory=int(self.resources.memory_gib * GIB) or None,
            max_restarts=0,  # the supervisor decides what is made again
            scheduling_strategy="SPREAD",
        )
        kept = _kept.pop(self._key(), [])
        end_kept()
        for actor in kept:
            self._begin(actor)
        for _ in range(self.flow.max_workers - len(kept)):
            self._start()

    def _key(self) -> tuple[object, ...]:
        """What workers must share to be taken over by another stage: the connection, and their resources."""
        import ray

        return (ray.get_runtime_context().get_job_id(), self.flow.max_workers, self.resources)

    def _start(self) -> None:
        """Ask for one more worker."""
        if self._class is not None:  # None: closed meanwhile
            self._begin(self._class.remote(bool(self.resources.gpus)))

    def _end(self, actor: Any) -> None:
        import ray

        ray.kill(actor)  # nothing happens to one that is dead

    def _begin(self, actor: Any) -> None:
        actor.open.remote(self.run.uri, self.run.settings, self.stage)
        self._starting[actor.greet.remote(self._expected)] = actor

    def _take(self, numbers: list[int], attempt: int) -> tuple[Any, Any]:
        """Give a range to the next idle worker; returns the worker, and the reference to what it makes."""
        hopeless_since = None
        warned = time.monotonic()
        while True:
            stopping.check()
            check_head()
            with self._lock:
                if self._class is None:
                    self._open_cluster()
                if self._starting:
                    self._greet()
                if self._idle:
                    actor = self._idle.pop()
                    self._busy[actor] = actor.make.remote(numbers, attempt)
                    return actor, self._busy[actor]
                hopeless = not self._busy and not self._may_start()
            hopeless_since = (hopeless_since or time.monotonic()) if hopeless else None
            if hopeless_since is not None and (not self._starting or time.monotonic() - hopeless_since > HOPE_S):
                raise MedadError(self._hopeless())
            if time.monotonic() - warned > PATIENCE_S:
                warned = time.monotonic()
                log.warning("%s waits for a worker: no node has %s free", self.stage, in_words(self.resources))
            time.sleep(POLL_S)

    def _greet(self) -> None:
        """Let workers that have started take ranges, if their nodes are as they should be."""
        import ray

        for reference in ray.wait(list(self._starting), timeout=0, num_returns=len(self._starting))[0]:
            actor = self._starting.pop(reference)
            try:
                self._node[actor], fault = ray.get(reference)
            except ray.exceptions.RayError as error:
                # No part is at fault: it has begun none. Its node may be the one that was just lost.
                self._stillborn += 1
                if self._stillborn == STARTS_LOST * self.flow.max_workers:
                    raise MedadError(self._dying(error)) from error
                self._start()
                continue
            self._stillborn = 0
            if fault is None:
                self._idle.append(actor)
            else:
                ray.kill(actor)
                self._refused = fault
                log.warning("a node of the Ray cluster is not used: it %s", fault)

    def _may_start(self) -> bool:
        """Whether a worker that was asked for fits a node; not while the head cannot say."""
        import ray

        try:
            return bool(self._starting) and any(holds(node, self.resources) for node in living_nodes())
        except ray.exceptions.RayError:
            return False

    def _dying(self, error: Exception) -> str:
        return (
            f"flow.ray_address: {self._stillborn} workers of {self.stage}, one after another, died while they started "
            f"({first_line(error)}); see Ray's logs on the nodes, and the same command goes on where it stopped"
        )

    def _hopeless(self) -> str:
        if self._refused and not self._starting:
            return f"flow.ray_address: a node {self._refused}"
        return (
            f"flow.ray_workers.{self.stage}: no node of the Ray cluster has {in_words(self.resources)} any more; "
            "the same command goes on where it stopped"
        )

    def _result(self, actor: Any, reference: Any) -> Made:
        """Wait for the range that a worker makes."""
        import ray

        while not ray.wait([reference], timeout=POLL_S)[0]:
            stopping.check()
            check_head()
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError:
            raise  # an error of this code: those of parts are returned
        except ray.exceptions.ActorUnavailableError as error:
            self._wait_for_death(actor)
            raise WorkerLost(first_line(error)) from error
        except ray.exceptions.RayError as error:
            raise WorkerLost(first_line(error)) from error

    def _wait_for_death(self, actor: Any) -> None:
        """Kill a worker that cannot be reached, and wait until Ray says that it is dead: it may still make its part."""
        import ray

        ray.kill(actor)
        while True:
            stopping.check()
            check_head()
            try:
                ray.get(actor.close.remote(), timeout=1)
            except ray.exceptions.ActorDiedError:
                return
            except ray.exceptions.RayError:
                time.sleep(POLL_S)

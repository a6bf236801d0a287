"""Where and how torch computes: device, precision, batch size, threads.

One decision: `auto` is resolved here and nowhere else, so that every stage, training and benchmark mean the same by it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from medad_core.config import Settings
from medad_core.errors import UsageError
from medad_core.models.lanes import settle_threads
from medad_core.store.regular import open_lock

# Slices a forward pass: what fills a GPU, and what a core's cache likes. Small ones keep all cores busy with few cases.
BATCH = {"cuda": 256, "mps": 32, "cpu": 4}
POLL_S = 0.2


def device_of(settings: Settings) -> str:
    """`auto` is CUDA where there is one, else the CPU. Raises UsageError for a device that is not there."""
    name = settings.models.device
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"models.device: {name} is not available here; set models.device=cpu or auto")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UsageError("models.device: mps is not available here; set models.device=cpu or auto")
    return name


def device_of_maps(settings: Settings) -> str:
    """Where the maps of a run are made: `device_of`, but for runner ray, whose workers may have GPUs of their own.

    Raises UsageError for a device that is not there.
    """
    if settings.flow.runner != "ray" or settings.models.device != "auto":
        return device_of(settings)
    return "cuda" if settings.flow.ray_workers.maps.gpus else "cpu"


def precision_of(settings: Settings) -> str:
    """`auto` is bfloat16 on CUDA, float16 where a GPU has no bfloat16, and float32 elsewhere.

    Raises UsageError where the GPU is one of another machine.
    """
    if settings.models.precision != "auto":
        return settings.models.precision
    if not device_of_maps(settings).startswith("cuda"):
        return "float32"
    if not torch.cuda.is_available():
        raise UsageError(
            "models.precision: auto is settled by a GPU, and this machine has none; name what those of the workers "
            "have, such as models.precision=bfloat16"
        )
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def batch_size_of(settings: Settings, device: torch.device) -> int:
    """Slices a forward pass."""
    size = settings.models.batch_size
    return BATCH[device.type] if isinstance(size, str) else size


@contextmanager
def worker_device(run: str, device: str, count: int | None = None) -> Iterator[str]:
    """`cuda` as the first `cuda:N` that no other worker of this run holds on this machine, waiting for one.

    Other devices stay as they are. A lock on a file works between threads and between processes, and goes with its
    holder however that ends. `count` is the number of GPUs, where it is not torch's.
    """
    if device != "cuda":
        yield device
        return
    owner = hashlib.sha256(f"{os.getuid()} {run}".encode()).hexdigest()[:16]
    while True:
        for number in range(count or torch.cuda.device_count()):
            with os.fdopen(open_lock(Path(tempfile.gettempdir()) / f"medad-{owner}.gpu{number}"), "wb") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield f"cuda:{number}"
                return
        time.sleep(POLL_S)


def settle_torch(settings: Settings) -> None:
    """Settle how torch computes in this process, so that a resumed stage does not differ from one that ran on.

    `models.threads` threads, because the last bits of sums that threads share depend on how many there are (maps are
    made in lanes, whose sums do not); and no TF32, to which cuDNN would round float32 convolutions: float32 is to mean
    the same on every device.
    """
    torch.backends.cudnn.allow_tf32 = False
    settle_threads(settings.models.threads)

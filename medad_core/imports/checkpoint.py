"""A foreign checkpoint file: a dictionary of tensors, or an error of one line.

One decision: `torch.load` with `weights_only=True`, always. Its unpickler builds tensors and nothing else, so a file
with code in it is refused before any of it runs.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections import deque
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from medad_core.errors import UsageError, WeightsError
from medad_core.store.regular import open_regular


def read_state(path: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a `.pth` or `.bin` file by name, on the CPU, dtype as in the file.

    They are mapped from the disk where the file's format allows it. `what` names the expected file in messages. Raises
    UsageError where there is no file, WeightsError for anything else than a dictionary of tensors: another format, a
    truncated file, objects or code in the pickle.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; name {what}")
    is_archive = zipfile.is_zipfile(path)
    if not is_archive and _claims_too_much(path):
        raise WeightsError(f"{path}: not {what}: it speaks of more numbers than it has bytes; get the file again")
    try:
        # The old format of torch.save, not a zip archive, cannot be mapped.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except Exception as error:  # a foreign file can make the unpickler raise anything; it means the same
        raise WeightsError(
            f"{path}: not {what}: {_reason(error)}; nothing in it was run, get the file again"
        ) from error
    if not _is_state(state):
        raise WeightsError(f"{path}: not {what}: it holds something else than tensors by name")
    if spread := next((name for name, tensor in state.items() if not _is_whole(tensor)), None):
        raise WeightsError(f"{path}: not {what}: {spread} has more numbers than are stored for it; get the file again")
    return state


def _claims_too_much(path: Path) -> bool:
    """Whether a file of torch's old format speaks of a tensor longer than itself, which torch would make room for."""
    size = path.stat().st_size
    try:
        with open_regular(path) as stream:
            for _ in range(3):  # magic number, version, facts of the machine; then what was saved
                deque(pickletools.genops(stream), maxlen=0)
            numbers = (given for _, given, _ in pickletools.genops(stream) if isinstance(given, int))
            return any(number > size for number in numbers)
    except (ValueError, OSError):  # no pickle, or a part of one: torch says so
        return False


def _is_whole(tensor: Tensor) -> bool:
    """Whether every number of a tensor is stored. One that is repeated a billion times fits into a small file."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _is_state(content: object) -> TypeGuard[dict[str, Tensor]]:
    """Whether the content of a file is a dictionary of at least one tensor by name."""
    if not isinstance(content, dict) or not content:
        return False
    return all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items())


def _reason(error: Exception) -> str:
    """The reason in plain words; torch's own text advises to load the file unsafely."""
    text = str(error)
    if "weights_only" in text.lower() or "unsupported global" in text.lower():
        named = text.partition("GLOBAL ")[2].split(" ", 1)[0]
        return f"objects or code are in it{', ' + named if named else ''}"
    return "it is cut short or of another format"

"""The folder that an import writes: new, complete or not there, beside a record of where it came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medad_core.errors import UsageError
from medad_core.models.cache import ConvertedModel, write_converted


def check_new(folder: Path) -> None:
    """Raise UsageError where `folder` exists already; to be called before any work."""
    if folder.exists():
        raise UsageError(f"--out: {folder} is there already; name a new folder")


def write_new(model: ConvertedModel, write: Callable[[Path], None]) -> ConvertedModel:
    """Make `model.folder` of what `write(scratch)` writes, complete or not at all, beside its record.

    Returns the model with the sha256 of every file. Raises UsageError where the folder cannot be written.
    """
    try:
        model.folder.parent.mkdir(parents=True, exist_ok=True)
        return write_converted(model, write)
    except OSError as error:
        raise UsageError(
            f"--out: cannot write {model.folder} ({error.strerror or error}); name another folder"
        ) from error

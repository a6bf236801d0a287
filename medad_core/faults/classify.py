"""Decides what is at fault for an error: the run or the part.

One decision: an error is classified by its type and its causes, never by the place where it was caught.

* the run: disk, network, settings, weights, a model or engine that cannot be loaded. The error stops the run. At the
  next start the cause may be gone; quarantine would lose every case.
* the part: an error raised while one part was made (PartError), rows that do not fit (RowsError).
* unsure: a GPU or machine out of memory, an engine that broke down (EngineError), a volume that could not be read
  (InputError). The part is at fault only if other parts succeed, before and after it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from enum import Enum

from medad_core.errors import EngineError, EngineStartError, InputError, PartError, RowsError

# Errors that a retry after some seconds cannot help: missing, forbidden, full or of the wrong kind. (Remote filesystems
# raise the classes without a number.)
LASTING = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
LASTING_NUMBERS = frozenset(
    (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL),
)
OUT_OF_MEMORY = "OutOfMemoryError"  # torch's, by name, because torch is not imported for it
DEVICE_ERRORS = ("AcceleratorError", "FatalError", OUT_OF_MEMORY)
# Words in the RuntimeError of torch or Python when a device fails or the machine is out of memory.
DEVICE_WORDS = ("CUDA", "cuDNN", "NCCL", "allocate memory", "start new thread")


class Fault(Enum):
    """What is at fault for an error."""

    RUN = "run"
    PART = "part"
    UNSURE = "unsure"


def classify(error: BaseException) -> Fault:
    """What is at fault for an error that was raised while parts were made."""
    if isinstance(error, EngineError | InputError):
        return Fault.UNSURE
    if isinstance(error, RowsError):
        return Fault.PART
    if not isinstance(error, PartError) or any(isinstance(cause, OSError | ImportError) for cause in causes(error)):
        return Fault.RUN
    return Fault.UNSURE if any(_is_of_the_device(cause) for cause in causes(error)) else Fault.PART


def can_heal(error: BaseException) -> bool:
    """Whether a retry may help: after a short fault of a filesystem or network, or if a GPU was full.

    A retry does not help for a wrong setting, nor for an engine, which was already restarted. The store turns system
    errors into StoreError; its cause is the system's own error.
    """
    if any(isinstance(cause, EngineError | EngineStartError) for cause in (error, error.__cause__)):
        return False
    system_error = next((cause for cause in causes(error) if isinstance(cause, OSError)), None)
    if system_error is not None:
        return not isinstance(system_error, LASTING) and system_error.errno not in LASTING_NUMBERS
    return any(_is_named(cause, (OUT_OF_MEMORY,)) for cause in causes(error))


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what caused it, what caused that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _is_of_the_device(error: BaseException) -> bool:
    """Whether memory ran out or a GPU failed. torch has no single class for either."""
    if _is_named(error, DEVICE_ERRORS) or isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in DEVICE_WORDS)


def _is_named(error: BaseException, names: tuple[str, ...]) -> bool:
    return any(kind.__name__ in names for kind in type(error).__mro__)

"""Whose fault is an error?

One decision: an error is judged by its type and by the causes behind it, never by where it was caught.

* the run's: disk, network, settings, weights, a model or engine that cannot be loaded. It stops the run, whose next
  start may find it healed; quarantining for it would cost every case.
* the part's: an error raised while one part was made (PartError), rows that do not fit (RowsError).
* unsure: a GPU or machine out of memory, an engine that broke down (EngineError), a volume that would not be read
  (InputError). As the part's, but only where other parts went well, before and after.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from enum import Enum

from medad_core.errors import EngineError, EngineStartError, InputError, PartError, RowsError

# What is missing, forbidden, full or of the wrong kind now will be so in a second. (Remote filesystems raise the
# classes without a number.)
LASTING = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
LASTING_NUMBERS = frozenset(
    (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL),
)
OUT_OF_MEMORY = "OutOfMemoryError"  # torch's, by name, because torch is not imported for it
DEVICE_ERRORS = ("AcceleratorError", "FatalError", OUT_OF_MEMORY)
# What torch and Python say, as a RuntimeError, when a device fails or the memory of the machine is spent.
DEVICE_WORDS = ("CUDA", "cuDNN", "NCCL", "allocate memory", "start new thread")


class Fault(Enum):
    """Whose fault an error is."""

    RUN = "run"
    PART = "part"
    UNSURE = "unsure"


def classify(error: BaseException) -> Fault:
    """Whose fault an error is that was raised while parts were made."""
    if isinstance(error, EngineError | InputError):
        return Fault.UNSURE
    if isinstance(error, RowsError):
        return Fault.PART
    if not isinstance(error, PartError) or any(isinstance(cause, OSError | ImportError) for cause in causes(error)):
        return Fault.RUN
    return Fault.UNSURE if any(_is_of_the_device(cause) for cause in causes(error)) else Fault.PART


def can_heal(error: BaseException) -> bool:
    """Whether trying again may help: a filesystem or network that stuttered, a GPU that was full.

    A wrong setting never heals.

    The store turns system errors into StoreError; the system's own error is its cause. An engine was restarted already.
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


def in_one_line(error: BaseException) -> str:
    """Such as `ValueError: too many dimensions`."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _is_of_the_device(error: BaseException) -> bool:
    """Out of memory, or a GPU that failed: neither has one class in torch."""
    if _is_named(error, DEVICE_ERRORS) or isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in DEVICE_WORDS)


def _is_named(error: BaseException, names: tuple[str, ...]) -> bool:
    return any(kind.__name__ in names for kind in type(error).__mro__)

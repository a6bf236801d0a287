"""Errors a user can act on.

One decision: the command line turns the class into an exit code (`UsageError` is 2, any other `MedadError` is 1). So a
message is one line that names the case or key, and the way out. Anything else that escapes is a bug and keeps its
traceback.
"""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if it has none: messages of ours are one line."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def in_one_line(error: BaseException) -> str:
    """The type and first line of an error, such as `ValueError: too many dimensions`."""
    name = type(error).__name__
    return f"{name}: {first_line(error)}" if str(error).strip() else name


class MedadError(Exception):
    """Base of every error medad raises on purpose."""

    @property
    def may_pass(self) -> bool:
        """Whether a file may be there that the system would not give now."""
        return isinstance(self.__cause__, OSError) and not isinstance(self.__cause__, FileNotFoundError)


class UsageError(MedadError):
    """The command, its arguments or its settings are wrong; nothing was started."""


class ConfigError(UsageError):
    """A settings file or a `key=value` override is wrong."""


class CaseError(MedadError):
    """One case cannot be used; the run records it and goes on. Its text is "<case_id>: <reason>"."""

    def __init__(self, case_id: str, reason: str) -> None:
        super().__init__(f"{case_id}: {reason}")
        self.case_id = case_id
        self.reason = reason

    def __reduce__(self) -> tuple[type[CaseError], tuple[str, str]]:
        # Exceptions cross process boundaries by pickling their `args`, which hold the joined message only.
        return type(self), (self.case_id, self.reason)


class TruncatedError(CaseError):
    """A file that ends before its content does: cut off, or still being copied."""


class PartError(MedadError):
    """Something went wrong while one part was made, and no case or setting is known to be at fault.

    Its cause is the error itself.
    """

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(f"{part}: {reason}")
        self.part = part
        self.reason = reason

    def __reduce__(self) -> tuple[type[PartError], tuple[str, str]]:
        return type(self), (self.part, self.reason)


class StoreError(MedadError):
    """Stage files that are missing, damaged or of another run, or a disk that fails.

    The system's own error is its cause.
    """


class RowsError(StoreError):
    """Rows of one part that do not fit its plan or its schema."""


class InputError(StoreError):
    """A volume that the filesystem would not give now; it may give it later."""


class EngineError(MedadError):
    """The LLM's engine broke down in the middle of its work."""


class EngineStartError(MedadError):
    """The LLM's engine cannot be opened, which is no part's fault."""


class Stopped(MedadError):
    """The process was asked to stop."""


class WeightsError(MedadError):
    """Weights that are missing, damaged, or made for other models."""

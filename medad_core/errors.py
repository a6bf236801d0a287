"""Errors a user can act on.

One decision: the command line turns the class into an exit code (`UsageError` is 2, any other `MedadError` is 1), so a
message is one line that names the case or key and the way out. Anything else that escapes is a bug and keeps its traceback.
"""


class MedadError(Exception):
    """Base of every error medad raises on purpose."""


class UsageError(MedadError):
    """The command, its arguments or its settings are wrong; nothing was started."""


class ConfigError(UsageError):
    """A settings file or a `key=value` override is wrong."""


class CaseError(MedadError):
    """One case cannot be used; the run records it and goes on."""

    def __init__(self, case_id: str, reason: str) -> None:
        super().__init__(f"{case_id}: {reason}")
        self.case_id = case_id
        self.reason = reason

    def __reduce__(self):
        # Exceptions cross process boundaries by pickling their `args`, which hold the joined message only.
        return type(self), (self.case_id, self.reason)


class TruncatedError(CaseError):
    """A file that ends before its content does: cut off, or still being copied."""


class PartError(MedadError):
    """Something went wrong while one part was made, which no case and no setting is known to be at fault for; its cause is the error itself."""

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(f"{part}: {reason}")
        self.part, self.reason = part, reason

    def __reduce__(self):
        return type(self), (self.part, self.reason)


class StoreError(MedadError):
    """Stage files that are missing, damaged or of another run; or a disk that fails (the system's own error is its cause)."""


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

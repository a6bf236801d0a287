"""An error on its way to another process, with its causes.

One decision: pickling an error drops what caused it, and causes say whether a retry may help (`can_heal`). So the
errors of the chain are pickled one by one and joined again.
"""

from __future__ import annotations

import pickle

from medad_core.errors import MedadError, in_one_line
from medad_core.faults.classify import causes


def pack(error: Exception) -> tuple[bytes, ...]:
    """The error and what caused it. One that cannot be pickled becomes a MedadError of the same text."""
    return tuple(map(_pickled, causes(error)))


def unpack(chain: tuple[bytes, ...]) -> Exception:
    """The error that was packed, with its causes."""
    first, *others = (pickle.loads(each) for each in chain)
    error: Exception = first
    for cause in others:
        first.__cause__ = cause
        first = cause
    return error


def _pickled(error: BaseException) -> bytes:
    try:
        data = pickle.dumps(error)
        pickle.loads(data)  # an error with a constructor of its own often fails only here
    except Exception:
        return pickle.dumps(MedadError(in_one_line(error)))
    return data

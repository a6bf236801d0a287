"""Peak memory of a process."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_mb() -> float:
    """Peak resident memory of this process in MB.

    Of this program alone, where the system says so: Linux counts that of the parent before `exec` elsewhere.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6

